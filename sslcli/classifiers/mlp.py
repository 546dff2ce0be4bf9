"""Two layers on the pooled vector, with a tanh between them."""

from sslcli.classifiers.linear import Linear


class Mlp(Linear):
    kind, layers, pooled = "mlp", 2, True
