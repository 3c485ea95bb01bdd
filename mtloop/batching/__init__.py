"""The plan: which sentences each update holds, and how they are divided over ranks and micro-batches.

Owns every decision about batches as a pure function of (lengths, budgets, seed, epoch, num_ranks). Must not know texts,
tensors, devices or the process it runs in: rank and rank count are parameters."""
