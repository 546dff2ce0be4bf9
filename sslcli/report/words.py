"""The language of a report: its sentences, and what it calls scores, parts and methods."""

from typing import Any

from sslcli.report.markup import Html, text
from sslcli.report.sentences import EN, ZH

WORDS = {"en": EN, "zh": ZH}

NAMES = {
    "en": {
        "accuracy": "accuracy",
        "top1": "top-1 accuracy",
        "top5": "top-5 accuracy",
        "macro_f1": "macro-F1",
        "micro_f1": "micro-F1",
        "f1": "F1",
        "f1-score": "F1",
        "precision": "precision",
        "recall": "recall",
        "map": "mean average precision",
        "mae": "mean error",
        "probe": "linear probe",
        "rankme": "RankMe",
        "knn": "nearest neighbours",
        "loss": "loss",
        "perplexity": "perplexity",
        "ece": "calibration error",
        "train": "training",
        "valid": "validation",
        "test": "test",
        "gallery": "gallery",
        "unlabelled": "unlabelled",
    },
    "zh": {
        "accuracy": "准确率",
        "top1": "Top-1 准确率",
        "top5": "Top-5 准确率",
        "macro_f1": "宏平均 F1",
        "micro_f1": "微平均 F1",
        "f1": "F1",
        "f1-score": "F1",
        "precision": "精确率",
        "recall": "召回率",
        "map": "平均精度均值",
        "mae": "平均误差",
        "probe": "线性探针",
        "knn": "最近邻",
        "loss": "损失",
        "perplexity": "困惑度",
        "ece": "校准误差",
        "train": "训练",
        "valid": "验证",
        "test": "测试",
        "gallery": "图库",
        "unlabelled": "无标签",
        "label": "标签",
        "length": "长度",
        "file": "文件",
        "source": "来源",
        "brightness": "亮度",
        "masked_accuracy": "掩码预测准确率",
        "token_accuracy": "词元准确率",
        "contrastive_accuracy": "对比准确率",
        "retrieval_accuracy": "检索准确率",
        "majority_accuracy": "最常见标签的准确率",
        "bits_per_byte": "每字节比特数",
        "quadratic_kappa": "二次加权 κ",
        "psnr": "峰值信噪比",
        "spearman": "斯皮尔曼相关",
        "rankme": "有效秩",
        "recall@1": "召回率@1",
        "recall@5": "召回率@5",
        "recall@10": "召回率@10",
        "feature_std": "特征标准差",
        "alignment": "对齐度",
        "uniformity": "均匀度",
        "macro avg": "宏平均",
        "weighted avg": "加权平均",
        "micro avg": "微平均",
        "TF-IDF with logistic regression": "TF-IDF 加逻辑回归",
        "TF-IDF with linear SVM": "TF-IDF 加线性 SVM",
        "the most frequent label": "最常见的标签",
        "the only label": "唯一的标签",
        "raw pixels by correlation": "按相关性比较原始像素",
        "the most frequent tag of each word": "每个词最常见的标注",
        "raw pixels, 5-NN by correlation": "原始像素的 5 近邻",
        "raw pixels, 1-NN by correlation": "原始像素的 1 近邻",
        "text_classification": "文本分类",
        "token_classification": "序列标注",
        "image_classification": "图像分类",
        "image_retrieval": "图像检索",
        "masked_lm": "掩码语言模型",
        "causal_lm": "因果语言模型",
        "span_contrastive": "片段对比学习",
        "simclr": "SimCLR",
    },
}


class Words:
    def __init__(self, language: str):
        self.language, self.words, self.names = language, WORDS[language], NAMES[language]

    def __call__(self, key: str, **values: Any) -> Html:
        """A sentence; what is filled in is escaped."""
        return Html(self.words[key].format_map({k: v if isinstance(v, Html) else text(v) for k, v in values.items()}))

    def name(self, key: object) -> str:
        """Of a score, a part or a method, as this language calls it; what it has no word for stays as it is."""
        return self.names.get(str(key), str(key).replace("_", " ") if self.language == "en" else str(key))

    def duration(self, seconds: float) -> str:
        whole = max(0, round(seconds))
        units = ("h", "min", "s") if self.language == "en" else ("小时", "分", "秒")
        parts = [(whole // 3600, units[0]), (whole // 60 % 60, units[1]), (whole % 60, units[2])]
        some = [f"{count} {unit}" for count, unit in parts if count][:2]
        return " ".join(some) or f"0 {units[2]}"
