"""Does PEFT read an adapter of ours, and is it the merged model? Needs peft and transformers.

python scripts/peft_adapter.py BASE RUN     # BASE as under `model` in the recipe; one text head
"""

import json
import sys
from pathlib import Path

import peft
import torch
import transformers

base, run = sys.argv[1], Path(sys.argv[2])
labels = json.loads((run / "model/config.json").read_text())["id2label"]
auto = transformers.AutoModelForSequenceClassification
plain = auto.from_pretrained(base, num_labels=len(labels)).eval()
merged = auto.from_pretrained(run / "model").eval()
ids = torch.randint(5, plain.config.vocab_size, (8, 21), generator=torch.Generator().manual_seed(0))
with torch.inference_mode():
    moved = merged.base_model(ids)[0] - plain.base_model(ids)[0]
    adapted = peft.PeftModel.from_pretrained(plain, str(run / "adapter")).eval()
    logits = merged(ids).logits
    apart = adapted(ids).logits - logits
print(
    json.dumps(
        {
            "peft": peft.__version__,
            "transformers": transformers.__version__,
            "largest_difference": float(apart.abs().max()),
            "largest_logit": float(logits.abs().max()),
            "hidden_states_moved_by": float(moved.abs().max()),
        }
    )
)
