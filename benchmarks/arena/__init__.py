"""Every published run of vLLM that can be expressed, predicted from public tables of its GPU and set beside it."""
