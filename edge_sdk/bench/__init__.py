"""What this device reaches, beside its peers."""
