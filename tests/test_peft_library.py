"""Adapters beside those of the library peft: prefixes, files, PiSSA, AdaLoRA's ranks."""

import copy
from pathlib import Path

import pytest
import torch

from sslcli.commands.tuned import put
from sslcli.hf import adapter
from sslcli.schema import Part
from tests.test_peft import METHODS, Run, _kind, text, work


def test_a_prefix_is_that_of_the_library() -> None:
    """The same keys and values in the library's cache; positions as they are without it."""
    from peft import PeftModel, PrefixTuningConfig

    model = text()
    plain, batch = copy.deepcopy(model.base), work("text")[2]
    plain.set_attn_implementation("eager")
    method = put(Part("peft", *_kind("prefix", tokens=4)), model)
    theirs = PeftModel(plain, PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=4))
    theirs.prompt_encoder["default"].load_prompt_embeddings(method.tensors()["prompt_embeddings"])
    prompt = theirs.get_prompt(12)
    mask = torch.cat([torch.ones(12, 4), batch["mask"].float()], 1)
    with torch.no_grad():
        wanted = plain.eval()(input_ids=batch["ids"], attention_mask=mask, past_key_values=prompt, position_ids=torch.arange(9)[None])
        ours = model.eval().encode(batch)
        model.pack()
        packed = model.encode(batch)
    assert torch.allclose(ours[batch["mask"]], wanted.last_hidden_state[batch["mask"]], atol=1e-5)
    assert torch.allclose(packed[batch["mask"]], ours[batch["mask"]], atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "ia3", "prompt", "vera", "oft", "ln_tuning", "dora", "adalora"])
def test_the_library_reads_what_was_saved(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    run = Run(Part("peft", *_kind(kind)), "text")
    run.steps(0, 5)
    run.optimizer.release(run.optimizer.best_weights())
    run.modules.eval()
    run.method.save(tmp_path, "base")
    theirs = PeftModel.from_pretrained(run.base.eval(), tmp_path)
    mask = run.batch["mask"]
    with torch.no_grad():
        hidden = theirs(input_ids=run.batch["ids"], attention_mask=mask.long()).last_hidden_state
        hidden = hidden[:, 8:] if kind == "prompt" else hidden
        assert torch.allclose(run.model.encode(run.batch)[mask], hidden[mask], atol=1e-5)


def test_pissa_is_plain_lora_of_twice_the_rank_over_the_original(tmp_path: Path) -> None:
    part = Part("peft", *_kind("lora", init="pissa", r=3))
    run = Run(part, "text")
    plain = work("text")[0]
    mask = run.batch["mask"]
    with torch.no_grad():
        start = run.model.eval().encode(run.batch)[mask]
        assert torch.allclose(start, plain.eval().encode(run.batch)[mask], atol=1e-5), "the start changes nothing"
    run.modules.train()
    run.steps(0, 10)
    run.optimizer.release(run.optimizer.best_weights())
    trained = run.said()
    run.method.save(tmp_path, "base")
    again = Run(Part("peft", *_kind("lora")), "text", load=tmp_path)
    again.goal.load_state_dict(run.goal.state_dict())
    assert again.method.r == 6 and torch.allclose(again.said(), trained, atol=1e-5)  # type: ignore[attr-defined]


def test_adalora_gives_ranks_as_the_library_does() -> None:
    """The same gradients, the same triplets switched off."""
    from peft.tuners.adalora.layer import RankAllocator

    run = Run(Part("peft", *_kind("adalora", start=6, r=2, warm=0.1, last=0.2, every=3, orthogonal=0.0)), "text")
    steps = run.optimizer.steps = 20
    names, masters = run.optimizer.names, run.optimizer.masters
    copies = {n: torch.nn.Parameter(m.detach().clone()) for n, m in zip(names, masters, strict=True) if ".lora_" in n}
    said = run.method.wrapped.peft_config["default"]  # type: ignore[attr-defined]
    said.total_step, said.tinit, said.tfinal, said.deltaT, said.target_r = steps, 2, 4, 3, 2
    model = type("Model", (), {"named_parameters": lambda _: iter(copies.items())})()
    theirs = RankAllocator(model, said, "default")
    for step in range(1, steps - 4 + 1):
        for n, m in zip(names, masters, strict=True):
            m.grad = torch.randn(m.shape, generator=torch.Generator().manual_seed(step + len(n))) * (m.abs() + 0.1)
            if n in copies:
                with torch.no_grad():
                    copies[n].copy_(m)
                copies[n].grad = m.grad.clone()
        theirs.update_and_allocate(model, step, force_mask=step == steps - 4)
        run.method.after_step(dict(zip(names, masters, strict=True)), step, steps)  # type: ignore[attr-defined]
        for n, m in zip(names, masters, strict=True):
            if ".lora_E." in n:
                assert torch.equal(m, copies[n]), (step, n)
    assert float(run.model.ranks.on.sum()) == 2 * len(run.method.names)


def test_adalora_comes_down_though_the_run_was_made_shorter() -> None:
    """A time limit plans again: the step at which ranks should have come down may be behind. They never go up again."""
    run = Run(Part("peft", *_kind("adalora", start=6, r=2, warm=0.1, last=0.2, every=3, orthogonal=0.0)), "text")
    masters, left = dict(zip(run.optimizer.names, run.optimizer.masters, strict=True)), []
    for step in range(1, 41):
        for n, m in masters.items():
            m.grad = torch.randn(m.shape, generator=torch.Generator().manual_seed(step + len(n)))
        run.method.after_step(masters, step, 100 if step < 20 else 20 if step < 30 else 60)  # type: ignore[attr-defined]
        left.append(float(run.model.ranks.on.sum()))
    wanted = 2 * len(run.method.names)
    assert left[18] > left[19] == left[-1] == wanted and left == sorted(left, reverse=True)


def test_adapter_marks_cover_the_library(tmp_path: Path) -> None:
    """Which modules an adapter is for is read from its tensors alone."""
    for part in (p.values[0] for p in METHODS):
        method = put(part, text())
        if method.type not in ("BITFIT", "LINEAR_PROBE", "PREFIX_TUNING", "PROMPT_TUNING"):
            assert set(adapter.modules(method.tensors())) == set(method.names)
