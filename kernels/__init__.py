"""Operations of a GPT block. `reference` defines each in plain PyTorch; the Triton kernels join it file by file."""
