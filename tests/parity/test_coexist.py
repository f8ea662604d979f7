"""transformers and peft import and run beside our packages.

`kernels` is also the import name of a package that transformers looks for; from the repository's root it
finds ours.
"""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

pytestmark = pytest.mark.parity

ROOT = Path(__file__).resolve().parents[2]

THEIRS = """
    import torch, transformers, peft
    config = transformers.GPT2Config(vocab_size=17, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    lora = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, lora)
    ids = torch.tensor([[1, 2, 3]])
    model(ids, labels=ids).loss.backward()
    assert model(ids).logits.shape == (1, 3, 17)
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, max_new_tokens=2)
    assert out.shape[1] <= 5
"""
OURS = """
    import kernels, minigpt
    assert kernels.__file__.startswith(ROOT), kernels.__file__
    gpt = minigpt.GPT(minigpt.GPTConfig(vocab_size=17, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    assert gpt.logits([[1, 2, 3]]).shape == (1, 3, 17)
"""


@pytest.mark.parametrize("order", [(THEIRS, OURS), (OURS, THEIRS)], ids=["theirs first", "ours first"])
def test_side_by_side(order):
    """With the repository's root first on the path, in either order."""
    code = f"ROOT = {str(ROOT)!r}\nimport sys\nassert sys.path[0] in ('', ROOT)\n"
    code += "".join(textwrap.dedent(part) for part in order)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
