"""An assistant behind HTTP, for programs that speak to OpenAI's interface."""
