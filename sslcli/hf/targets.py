"""Which modules of a network a method of the room `peft` works on: one table, by family and by the part that they play."""

import re
from collections.abc import Sequence
from typing import Any

PROJECTIONS, LINEAR, KEYS, INNER, OUTPUTS = "projections", "linear", "keys", "inner", "outputs"
NORMS, ATTENTION, BRANCHES = "norms", "attention", "branches"

_BERT = r"encoder\.layer\.\d+\."
_BERT_LIKE = {
    PROJECTIONS: _BERT + r"attention\.self\.(query|value)",  # of queries and values, where little is to be added,
    LINEAR: _BERT + r"(attention\.self\.(query|key|value)|(attention\.output|intermediate|output)\.dense)",  # and all of a block
    KEYS: _BERT + r"attention\.self\.(key|value)",  # what IA3 scales at its output,
    INNER: _BERT + r"output\.dense",  # and at its input: the second layer of the feed-forward part
    OUTPUTS: _BERT + r"(attention\.output|output)\.dense",  # the last layer of each part, which bottlenecks follow
    BRANCHES: _BERT + r"(attention\.self\.(query|key|value)|(attention\.output|output)\.dense)",  # these, and what attention compares
    NORMS: _BERT + r"(attention\.output|output)\.LayerNorm",
    ATTENTION: _BERT + r"attention\.self",  # what calls hf.attention.attend
}
FAMILIES: dict[str, dict[str, str]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT_LIKE),
    "modernbert": {
        PROJECTIONS: r"layers\.\d+\.attn\.Wqkv",
        LINEAR: r"layers\.\d+\.(attn\.(Wqkv|Wo)|mlp\.(Wi|Wo))",
        KEYS: r"layers\.\d+\.attn\.Wqkv",
        INNER: r"layers\.\d+\.mlp\.Wo",
        OUTPUTS: r"layers\.\d+\.(attn|mlp)\.Wo",
        BRANCHES: r"layers\.\d+\.(attn\.(Wqkv|Wo)|mlp\.Wo)",
        NORMS: r"(layers\.\d+\.(attn|mlp)|final)_norm",
        ATTENTION: r"layers\.\d+\.attn",
    },
    "distilbert": {
        PROJECTIONS: r"transformer\.layer\.\d+\.attention\.(q|v)_lin",
        LINEAR: r"transformer\.layer\.\d+\.(attention\.(q|k|v|out)_lin|ffn\.lin[12])",
        KEYS: r"transformer\.layer\.\d+\.attention\.(k|v)_lin",
        INNER: r"transformer\.layer\.\d+\.ffn\.lin2",
        OUTPUTS: r"transformer\.layer\.\d+\.(attention\.out_lin|ffn\.lin2)",
        BRANCHES: r"transformer\.layer\.\d+\.(attention\.(q|k|v|out)_lin|ffn\.lin2)",
        NORMS: r"transformer\.layer\.\d+\.(sa|output)_layer_norm",
        ATTENTION: r"transformer\.layer\.\d+\.attention",
    },
    "gpt2": {
        PROJECTIONS: r"h\.\d+\.attn\.c_attn",
        LINEAR: r"h\.\d+\.(attn\.c_(attn|proj)|mlp\.c_(fc|proj))",
        KEYS: r"h\.\d+\.attn\.c_attn",
        INNER: r"h\.\d+\.mlp\.c_proj",
        OUTPUTS: r"h\.\d+\.(attn|mlp)\.c_proj",
        BRANCHES: r"h\.\d+\.(attn\.c_(attn|proj)|mlp\.c_proj)",
        NORMS: r"h\.\d+\.ln_[12]|ln_f",
        ATTENTION: r"h\.\d+\.attn",
    },
    "vit": {
        PROJECTIONS: r"layers\.\d+\.attention\.(q|v)_proj",
        LINEAR: r"layers\.\d+\.(attention\.(q|k|v|o)_proj|mlp\.fc[12])",
        KEYS: r"layers\.\d+\.attention\.(k|v)_proj",
        INNER: r"layers\.\d+\.mlp\.fc2",
        OUTPUTS: r"layers\.\d+\.(attention\.o_proj|mlp\.fc2)",
        BRANCHES: r"layers\.\d+\.(attention\.(q|k|v|o)_proj|mlp\.fc2)",
        NORMS: r"layers\.\d+\.layernorm_(before|after)|layernorm",
        ATTENTION: r"layers\.\d+\.attention",
    },
}


def targets(model: Any, part: str, asked: Sequence[str] | None = None) -> list[str]:
    """Full names in `model.base` of the modules that play a part; `asked`: ends of names that the user gives instead."""
    names = [n for n, _ in model.base.named_modules()]
    if asked is not None:
        for end in asked:
            if not any(_ends(n, end) for n in names):
                leaves = sorted({n.rsplit(".", 1)[-1] for n, m in model.base.named_modules() if not list(m.children())} - {""})
                raise ValueError(f"targets: no module of this network ends in {end!r} (its modules: {', '.join(leaves)})")
        return [n for n in names if any(_ends(n, end) for end in asked)]
    if model.family == "resnet":
        raise ValueError("a residual network has no layers of this kind; use peft=bitfit or peft=linear_probe, or task.tune=<blocks>")
    if model.family not in FAMILIES:
        raise ValueError(f"no table of modules for the {model.family} family; name them: peft.targets=[<end of a module's name>, ...]")
    found = [n for n in names if re.fullmatch(FAMILIES[model.family][part], n)]
    return [n for n in found if any(True for _ in model.base.get_submodule(n).parameters())]  # ModernBERT's first norm does nothing


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")
