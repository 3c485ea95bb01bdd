"""Records of a run, as training logs them."""


def update(step, loss=4.5, grad_norm=1.25):
    return {
        "step": step,
        "epoch": step / 100,
        "loss": loss,
        "grad_norm": grad_norm,
        "learning_rate": 2e-5,
        "target_tokens": 999,
        "tokens_per_s": 12_345.6,
    }


def evaluation(step, bleu=31.25, eval_loss=1.5):
    return {
        "step": step,
        "epoch": step / 100,
        "eval_loss": eval_loss,
        "perplexity": 4.4817,
        "bleu": bleu,
        "bleu_signature": "nrefs:1",
        "chrf": 55.5,
        "num_sentences": 6,
        "eval_time_s": 2.5,
        "sentences_per_s": 98.76,
    }
