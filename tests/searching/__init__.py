"""The room `searching`."""
