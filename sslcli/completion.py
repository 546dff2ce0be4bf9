"""Shell completion behind the verb: commands, groups and their choices, keys. `ssl completion bash|zsh|fish` prints the script."""

import re
from collections.abc import Iterator, Sequence

from sslcli.errors import BadInput, printable
from sslcli.help import VERBS, choices, home

OPTIONS = ("--help", "--dry-run", "--cfg", "--multirun", "--config-dir", "--quiet", "--verbose", "--debug")

SCRIPTS = {
    "bash": """\
# eval "$(ssl completion bash)", or put it into ~/.bashrc
_ssl_complete() {
  local line="${COMP_LINE:0:$COMP_POINT}" word
  COMPREPLY=()
  while IFS= read -r word; do COMPREPLY+=("${word##*"${COMP_WORDBREAKS:+__none__}"}"); done < <(ssl completion words "$line" 2>/dev/null)
  # readline treats = as the end of a word: leave out what stands before it
  local current="${line##* }"
  if [[ "$current" == *=* ]]; then COMPREPLY=("${COMPREPLY[@]#"${current%%=*}="}"); fi
  [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *= ]] && compopt -o nospace
  return 0
}
complete -o default -F _ssl_complete ssl
""",
    "zsh": """\
# eval "$(ssl completion zsh)", or put it into ~/.zshrc after compinit
_ssl_complete() {
  local -a found
  found=("${(@f)$(ssl completion words "${LBUFFER}" 2>/dev/null)}")
  found=(${found:#})
  if (( ${#found} )); then compadd -Q -S '' -a found; else _files; fi
}
compdef _ssl_complete ssl
""",
    "fish": """\
# ssl completion fish > ~/.config/fish/completions/ssl.fish
complete -c ssl -e
complete -c ssl -a '(ssl completion words (commandline -cp) 2>/dev/null)'
""",
}


def main(words: Sequence[str]) -> int:
    if words and words[0] == "words":
        print("\n".join(complete(words[1] if len(words) > 1 else "")))
        return 0
    if len(words) != 1 or words[0] not in SCRIPTS:
        raise BadInput(f"completion {printable(' '.join(words))}: name a shell, as in ssl completion bash (or zsh, fish)")
    print(SCRIPTS[words[0]], end="")
    return 0


def complete(line: str) -> list[str]:
    """What may stand at the end of a command line that begins with `ssl `."""
    words = line.split(" ")
    current, before = words[-1], [w for w in words[1:-1] if w]
    if not before:
        return [v for v in (*VERBS, "completion", "--help", "--version") if v.startswith(current)]
    verb = before[0]
    if verb == "completion":
        return [s for s in SCRIPTS if s.startswith(current)]
    if verb not in VERBS:
        return []
    if current.startswith("-"):
        return [o for o in OPTIONS if o.startswith(current)]
    found = choices()
    key, equals, value = current.partition("=")
    if equals:
        return [f"{key}={c}" for c in found.get(key.lstrip("+"), {}) if c.startswith(value)]
    chosen = dict(w.split("=", 1) for w in before[1:] if "=" in w)
    return sorted({k for k in _keys(verb, chosen) if k.startswith(current)})


def _keys(verb: str, chosen: dict[str, str]) -> Iterator[str]:
    """`group=` for every group of the verb, and `group.key=` for the keys of the chosen (or default) file of each."""
    text = (home() / f"{verb.replace('-', '_')}.yaml").read_text(encoding="utf-8")
    defaults = dict(re.findall(r"^  - (\w+): (\w+)", text, re.MULTILINE))
    for name in re.findall(r"^(\w+):", text, re.MULTILINE):
        if name != "defaults":
            yield f"{name}="
    if verb == "finetune":
        yield "+compare="
    for group, default in defaults.items():
        yield f"{group}="
        path = home() / group / f"{chosen.get(group, default)}.yaml"
        if path.exists():
            for key in _top(path.read_text(encoding="utf-8")):
                if key != "kind":
                    yield f"{group}.{key}="


def _top(text: str) -> list[str]:
    """Keys of the top level of a small YAML file, a line each or between braces."""
    if "\n{" not in text:
        return re.findall(r"^(\w+):", text, re.MULTILINE)
    inside = re.sub(r"\{[^{}]*\}|#.*", "", text[text.index("\n{") + 2 :])
    return re.findall(r"(?:^|,)\s*(\w+):", inside, re.MULTILINE)
