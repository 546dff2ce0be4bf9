"""What an alarm says, in English and in Chinese: what was seen, the likeliest cause with that objective, and what to change."""

from string import Formatter
from typing import Any

from sslcli.core import Objective
from sslcli.evidence.collapse import Rule

SEEN = {
    "en": {
        "same_views": "the two views are one and the same in {value:.0%} of the rows (alarm above {limit:.0%})",
        "idle": "objective.{part} has not moved: change {value:.2g} (alarm below {limit:g})",
        "constant": "all rows get nearly one vector: spread {value:.2g} (alarm below {limit:g})",
        "tokens": "all tokens of a text get nearly one vector: spread {value:.2g} (alarm below {limit:g})",
        "uninformed": "what is to be learnt is {value:.0%} the same for all rows (alarm above {limit:.0%})",
        "shrunk": "projections have shrunk to a deviation of {value:.2g}, 1 is asked (alarm below {limit:g})",
        "narrow": "projections fill hardly any dimension: RankMe {value:.2g} (alarm below {limit:g})",
        "guessing": "the loss is {value:.2%} below that of a guess (alarm below {limit:.0%})",
    },
    "zh": {
        "same_views": "{value:.0%} 的样本的两个视图完全相同（超过 {limit:.0%} 即报警）",
        "idle": "objective.{part} 没有变化：变化量 {value:.2g}（低于 {limit:g} 即报警）",
        "constant": "所有样本的向量几乎相同：离散度 {value:.2g}（低于 {limit:g} 即报警）",
        "tokens": "一段文本中所有词元的向量几乎相同：离散度 {value:.2g}（低于 {limit:g} 即报警）",
        "uninformed": "学习目标有 {value:.0%} 对所有样本都相同（超过 {limit:.0%} 即报警）",
        "shrunk": "投影的标准差缩小到 {value:.2g}，目标为 1（低于 {limit:g} 即报警）",
        "narrow": "投影几乎只占一个方向：RankMe {value:.2g}（低于 {limit:g} 即报警）",
        "guessing": "损失仅比随机猜测低 {value:.2%}（低于 {limit:.0%} 即报警）",
    },
}
CAUSES = {
    "en": {
        "views": "the augment changes nothing; choose one that crops or distorts, as augment=simclr (--preview shows the views)",
        "pairs": "both sides of a pair are the same text, or dropout is off; look at the data's pairs, raise objective.dropout",
        "spans": "many documents are hardly longer than a span; lower objective.shortest (now {shortest}), or leave the shortest texts out",
        "idle": "its learning rate or its gradient is zero; train it as fast as the network, or faster",
        "network": "the network gives every input the same output; lower optimizer.lr, and see whether inputs differ (--preview)",
        "temperature": "objective.temperature={temperature:g} lets nothing stand out; 0.05 to 0.5 is usual. Else raise optimizer.lr",
        "stop_gradient": "a gradient flows into the target, or the predictor is too slow; detach the target, check the predictor",
        "teacher": "the target follows the network at once; detach it, and raise objective.momentum (now {momentum:g})",
        "centring": "the teacher is not centred; lower objective.centre_momentum (now {centre_momentum:g}) or objective.teacher",
        "variance": "nothing keeps the features apart; raise objective.variance (now {variance:g})",
        "redundancy": "one feature repeats the others; raise objective.redundancy (now {redundancy:g})",
        "codes": "codes are not shared out among the prototypes; lower objective.epsilon (now {epsilon:g}) or raise objective.rounds",
        "negatives": "the batch gives too few different negatives; raise trainer.batch_size, lower objective.temperature",
    },
    "zh": {
        "views": "数据增强没有改变图片；请选择会裁剪或变形的增强，例如 augment=simclr（--preview 可查看视图）",
        "pairs": "一对文本的两侧相同，或 dropout 未生效；请检查数据中的文本对，或提高 objective.dropout",
        "spans": "许多文档几乎不比一个片段长；请降低 objective.shortest（现为 {shortest}），或去掉最短的文本",
        "idle": "它的学习率或梯度为零；请让它与网络训练得一样快或更快",
        "network": "网络对每个输入给出相同的输出；请降低 optimizer.lr，并检查输入是否确有差异（--preview）",
        "temperature": "objective.temperature={temperature:g} 使差异无法显现；通常取 0.05 到 0.5。否则请提高 optimizer.lr",
        "stop_gradient": "梯度流入了目标，或预测头学得太慢；请截断目标的梯度，并检查预测头",
        "teacher": "目标立即跟随网络；请截断其梯度，并提高 objective.momentum（现为 {momentum:g}）",
        "centring": "教师没有中心化；请降低 objective.centre_momentum（现为 {centre_momentum:g}）或 objective.teacher",
        "variance": "没有约束使特征分散；请提高 objective.variance（现为 {variance:g}）",
        "redundancy": "各特征彼此重复；请提高 objective.redundancy（现为 {redundancy:g}）",
        "codes": "编码没有均匀分配给各原型；请降低 objective.epsilon（现为 {epsilon:g}）或提高 objective.rounds",
        "negatives": "批次中的负样本太少或太相似；请提高 trainer.batch_size，降低 objective.temperature",
    },
}
FRAME = {"en": "collapse at step {step}: {seen}. Most likely: {cause}", "zh": "第 {step} 步发生坍缩：{seen}。最可能的原因：{cause}"}
USUAL = {"same_views": "views", "idle": "idle"}  # whatever the objective; of all else the network itself


def alarm(step: int, rule: Rule, value: float, objective: Objective, **more: Any) -> dict[str, Any]:
    """What stands in metrics.jsonl: what was seen, the key of the likeliest cause, and the settings that its sentence names."""
    cause = objective.causes.get(rule.symptom) or USUAL.get(rule.symptom, "network")
    names = [name for _, name, _, _ in Formatter().parse(CAUSES["en"][cause]) if name]
    settings = {name: getattr(objective, name) for name in names}
    seen = {"symptom": rule.symptom, "value": float(f"{value:.4g}"), "limit": rule.limit}
    return {"step": step, **seen, "cause": cause, **settings, **more}


def sentence(found: Any, language: str = "en") -> str:
    """An `alarm` in one line; empty for what is none (a folder may be a stranger's)."""
    try:
        seen = SEEN[language][found["symptom"]].format_map(found)
        return FRAME[language].format(step=found["step"], seen=seen, cause=CAUSES[language][found["cause"]].format_map(found))
    except (KeyError, TypeError, ValueError):
        return ""
