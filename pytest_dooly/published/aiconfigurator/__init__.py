"""The measured tables of the package aiconfigurator-core: their rows as latencies of our operations.

Nothing else knows these tables. What is assumed of them is what their collector does (ai-dynamo/aiconfigurator,
`collector/`, of August 2026), and what a row does not say:

- Latencies are means in milliseconds over six replays of a CUDA graph, after three to warm up; a power law's, over one
  replay of five routings; a custom all-reduce's, over 20 replays of five. Of linears in fp8 blocks, of NCCL and of
  kernels that say `eager`, the host launched every kernel; NCCL's own tests take 60 to 100 rounds after 40.
- Inputs stay the same. A linear is six layers with weights of their own in turn, in fp8 blocks and nvfp4 a single one.
- Attention writes the step's keys and values where its backend leaves that to the caller. Blocks have 64 tokens.
- Latent attention is the whole layer of a model; queries in fp8, which no trace tells from others, are left out.
- A mixture routes too, but has no shared experts. Its activation is told by its sizes; Kimi K3's was timed as a silu.
  Its router is taken for a softmax with weights that add up to 1 and all experts in one group, whatever the model's;
  DeepSeek-V3's groups send tokens elsewhere. Biases (GPT-OSS) and the scales of quantised weights are left out.
- `vllm_fused_moe` (vLLM 0.14, so all of the A100's) is from an older collector: experts alone, all gated by a silu,
  over ten routings, in half precision.
- NCCL's `half` stands for bf16, which is as many bytes.
- Of other engines than vLLM, what the host launched is known by the kernel's name alone.
"""

from __future__ import annotations

from pytest_dooly.published.aiconfigurator.tables import PACKAGE, read_tables, systems

__all__ = ["PACKAGE", "read_tables", "systems"]
