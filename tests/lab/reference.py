"""The tutorial's network once more, in float64 NumPy with a backward pass written by hand."""

import numpy as np

EPS, BIAS = 0.001, 0.1


class Layer:
    """One hidden layer, or the input normalization where it has no weights."""

    def __init__(self, weight, width, activation, *, batch_norm):
        self.weight = weight
        self.bias = np.full(width, BIAS)
        self.scale, self.shift = np.ones(width), np.zeros(width)
        self.activation, self.batch_norm = activation, batch_norm

    def forward(self, x):
        self.x = x
        z = x if self.weight is None else x @ self.weight + self.bias
        if self.batch_norm:
            centred = z - z.mean(0)
            self.sd = np.sqrt((centred**2).mean(0) + EPS)
            self.hat = centred / self.sd
            z = self.hat * self.scale + self.shift
        self.out = {"relu": lambda v: np.maximum(v, 0), "tanh": np.tanh, None: lambda v: v}[
            self.activation
        ](z)
        return self.out

    def backward(self, grad, lr):
        if self.activation == "relu":
            grad = grad * (self.out > 0)
        elif self.activation == "tanh":
            grad = grad * (1 - self.out**2)
        if self.batch_norm:
            scale = self.scale.copy()
            self.scale -= lr * (grad * self.hat).sum(0)
            self.shift -= lr * grad.sum(0)
            hat = grad * scale
            grad = (hat - hat.mean(0) - self.hat * (hat * self.hat).mean(0)) / self.sd
        if self.weight is None:
            return grad
        below = grad @ self.weight.T
        self.weight = self.weight - lr * (self.x.T @ grad)
        self.bias = self.bias - lr * grad.sum(0)
        return below


def cost_after_one_step(x, y, weights, activation, *, batch_norm, lr=0.001):
    """The cost before and after one step of gradient descent on the mean squared error."""
    hidden = [Layer(w, w.shape[1], activation, batch_norm=batch_norm) for w in weights[:-1]]
    layers = [
        *([Layer(None, 1, None, batch_norm=True)] if batch_norm else []),
        *hidden,
        Layer(weights[-1], 1, None, batch_norm=False),
    ]

    def predict():
        h = x
        for layer in layers:
            h = layer.forward(h)
        return h

    error = predict() - y
    before = float((error**2).mean())
    grad = 2 * error / len(x)
    for layer in reversed(layers):
        grad = layer.backward(grad, lr)
    return before, float(((predict() - y) ** 2).mean())
