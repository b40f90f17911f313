"""Language models: finding and loading, output head, FLOPs, LoRA, packing."""
