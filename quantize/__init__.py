"""The toolchain: what makes and measures the models that the runtime opens. Heavy packages load on use."""
