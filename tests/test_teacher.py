"""The slowly moving twin and the queue: exact averages, whatever the precision, and nothing lost by an interruption."""

import pytest
import torch
from torch import nn

from sslcli.lowered import Lowered
from sslcli.resume import _buffers
from sslcli.teacher import Queue, Teacher
from tests.test_vision_models import pixels, resnet, vit


def test_a_teacher_is_the_average_of_its_student() -> None:
    student = vit()
    teacher = Teacher(student)
    expected = [p.detach().clone() for p in student.parameters()]
    for _ in range(3):
        with torch.no_grad():
            for p in student.parameters():
                p.add_(torch.randn_like(p))
        teacher.move(student, 0.9)
        expected = [0.9 * e + 0.1 * p.detach() for e, p in zip(expected, student.parameters(), strict=True)]
    for p, e in zip(teacher.twin.parameters(), expected, strict=True):
        assert torch.allclose(p, e, atol=1e-6) and not p.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    layer = nn.Linear(4, 2)
    said = Teacher(layer)(torch.randn(3, 4, requires_grad=True))
    assert said.shape == (3, 2) and not said.requires_grad


def test_small_moves_are_not_lost_in_bf16() -> None:
    student = nn.Linear(64, 64)
    teacher = Teacher(student)
    modules = nn.ModuleDict({"model": student, "teacher": teacher})
    lowered = Lowered(modules, list(student.parameters()), torch.bfloat16)
    expected = [p.detach().float().clone() for p in lowered.masters]
    start = [e.clone() for e in expected]
    for _ in range(200):
        with torch.no_grad():
            for master, p in zip(lowered.masters, student.parameters(), strict=True):
                master.add_(0.001)
                p.copy_(master)
        teacher.move(student, 0.999)
        expected = [0.999 * e + 0.001 * m for e, m in zip(expected, lowered.masters, strict=True)]
    for average, e, s in zip(teacher.averages.buffers(), expected, start, strict=True):
        assert average.dtype == torch.float32
        assert float((average - s).mean()) == pytest.approx(float((e - s).mean()), rel=0.02)
        assert float((e - s).mean()) > 0.015, "what bf16 would have lost: a move of 2e-4 at most, beside weights of a tenth"
    assert next(teacher.twin.parameters()).dtype == torch.bfloat16
    assert torch.equal(next(teacher.twin.parameters()), next(teacher.averages.buffers()).bfloat16())


def test_a_teachers_statistics_are_its_own() -> None:
    student = resnet().train()
    teacher = Teacher(student).train()
    before = student.base.embedder.embedder.normalization.running_mean.clone()
    teacher.twin.encode({"pixels": pixels(32, 8) + 5})
    assert torch.equal(student.base.embedder.embedder.normalization.running_mean, before)
    assert not torch.equal(teacher.twin.base.embedder.embedder.normalization.running_mean, before)


def test_a_teacher_survives_an_interruption() -> None:
    student, x = resnet().train(), pixels(32, 8)
    modules = nn.ModuleDict({"model": student, "teacher": Teacher(student)})
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p) * 0.1)
        modules.teacher.twin.encode({"pixels": x})
        modules.teacher.move(student, 0.5)
    state = {n: t.clone() for n, t in _buffers(modules).items()}
    assert not any(n.endswith((".weight", ".bias")) for n in state if "averages" not in n), "the copy is not saved"
    fresh = nn.ModuleDict({"model": resnet().train(), "teacher": Teacher(resnet().train())})
    Lowered(fresh, list(fresh.model.parameters()), torch.float32)
    assert not fresh.load_state_dict(state, strict=False).unexpected_keys
    for network in (modules, fresh):
        network.eval()
    assert torch.equal(fresh.teacher.twin.encode({"pixels": x}), modules.teacher.twin.encode({"pixels": x}))


def test_a_queue_keeps_the_newest() -> None:
    queue, seen = Queue(5, 2), []
    assert torch.allclose(queue.values.norm(dim=-1), torch.ones(5))
    for i in range(4):
        rows = torch.full((3, 2), float(i))
        queue.push(rows)
        seen += rows.tolist()
    assert sorted(queue.values.tolist()) == sorted(seen[-5:])
    again = Queue(5, 2)
    again.load_state_dict(queue.state_dict())
    for q in (queue, again):
        q.push(torch.full((7, 2), 9.0))
    assert torch.equal(queue.values, again.values) and float(queue.values.min()) == 9
