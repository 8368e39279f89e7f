"""Recurrent layers and cells as their users write them."""

from __future__ import annotations

from typing import Any

import torch
from case import Case
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def steps() -> Tensor:
    return torch.randn(3, 10, 24)


def tokens() -> Tensor:
    return torch.randint(0, 400, (3, 10))


class _Last(nn.Module):
    """A recurrent layer and a linear one on its last step."""

    def __init__(self, rnn: type[nn.RNNBase], hidden: int = 128, **kwargs: Any) -> None:
        super().__init__()
        self.rnn = rnn(24, hidden, **kwargs)
        width = kwargs.get("proj_size") or hidden
        self.fc = nn.Linear(width * (2 if kwargs.get("bidirectional") else 1), 10)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.fc(out[:, -1] if self.rnn.batch_first else out[-1])


def lstm_1() -> nn.Module:
    return _Last(nn.LSTM, 160, batch_first=True)


def lstm_3() -> nn.Module:
    return _Last(nn.LSTM, num_layers=3, dropout=0.2)


def lstm_bidirectional_2() -> nn.Module:
    return _Last(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True)


def lstm_proj() -> nn.Module:
    return _Last(nn.LSTM, 128, num_layers=2, proj_size=48, batch_first=True)


def lstm_bidirectional_proj() -> nn.Module:
    return _Last(nn.LSTM, 128, bidirectional=True, proj_size=40, batch_first=True)


def lstm_without_bias() -> nn.Module:
    return _Last(nn.LSTM, 160, bias=False)


def gru_1() -> nn.Module:
    return _Last(nn.GRU, 192)


def gru_3() -> nn.Module:
    return _Last(nn.GRU, num_layers=3, batch_first=True)


def gru_bidirectional_2() -> nn.Module:
    return _Last(nn.GRU, num_layers=2, bidirectional=True)


def rnn_tanh() -> nn.Module:
    return _Last(nn.RNN, 320, batch_first=True)


def rnn_relu_bidirectional_2() -> nn.Module:
    return _Last(nn.RNN, 128, nonlinearity="relu", num_layers=2, bidirectional=True)


class _HiddenHead(nn.Module):
    """A classifier on the final hidden states of both directions, with the first states given."""

    def __init__(self, vocab: int = 400, emb: int = 48, hidden: int = 96, layers: int = 2) -> None:
        super().__init__()
        self.n_layers, self.hidden_dim = layers, hidden
        self.embedding = nn.Embedding(vocab, emb, padding_idx=0)
        self.lstm = nn.LSTM(emb, hidden, layers, bidirectional=True, batch_first=True, dropout=0.5)
        self.dropout, self.fc = nn.Dropout(0.5), nn.Linear(2 * hidden, 5)

    def init_hidden(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (2 * self.n_layers, x.size(0), self.hidden_dim)
        return torch.zeros(shape, dtype=x.dtype, device=x.device), torch.zeros(shape, dtype=x.dtype, device=x.device)

    def forward(self, text: Tensor) -> Tensor:
        embedded = self.embedding(text)
        _, (hidden, _) = self.lstm(embedded, self.init_hidden(embedded))
        return self.fc(self.dropout(torch.cat((hidden[-2, :, :], hidden[-1, :, :]), dim=1)))


def lstm_text_hidden_head() -> nn.Module:
    return _HiddenHead()


class _Packed(nn.Module):
    def __init__(self, hidden: int = 192) -> None:
        super().__init__()
        self.gru = nn.GRU(24, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.tensor([10, 8, 5]), batch_first=True)
        out, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return self.fc(out.sum(1))


def gru_packed() -> nn.Module:
    return _Packed()


class _CellLoop(nn.Module):
    """Two cells stepped by a Python loop."""

    def __init__(self, hidden: int = 96) -> None:
        super().__init__()
        self.hidden_size = hidden
        self.cell1, self.cell2 = nn.LSTMCell(24, hidden), nn.LSTMCell(hidden, hidden)
        self.linear = nn.Linear(hidden, 24)

    def forward(self, x: Tensor) -> Tensor:
        h1 = x.new_zeros(x.size(0), self.hidden_size)
        c1, h2, c2 = torch.zeros_like(h1), torch.zeros_like(h1), torch.zeros_like(h1)
        outputs = []
        for step in x.split(1, dim=1):
            h1, c1 = self.cell1(step.squeeze(1), (h1, c1))
            h2, c2 = self.cell2(h1, (h2, c2))
            outputs.append(self.linear(h2))
        return torch.stack(outputs, 1)


def lstm_cells() -> nn.Module:
    return _CellLoop()


class _GRUCellLoop(nn.Module):
    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.encode = nn.Linear(24, 64)
        self.cell = nn.GRUCell(64, hidden)
        self.decode = nn.Linear(hidden, 24)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.zeros(x.shape[0], self.cell.hidden_size, dtype=x.dtype, device=x.device)
        outs = []
        for t in range(x.shape[1]):
            h = self.cell(torch.relu(self.encode(x[:, t])), h)
            outs.append(self.decode(h))
        return torch.stack(outs, dim=1), h


def gru_cells() -> nn.Module:
    return _GRUCellLoop()


class _HandLSTM(nn.Module):
    """The cell written out: four gates from one product, cut by ``chunk``."""

    def __init__(self, cin: int, hidden: int) -> None:
        super().__init__()
        self.input_size, self.hidden_size = cin, hidden
        self.weight_ih = nn.Parameter(torch.randn(4 * hidden, cin) / cin**0.5)
        self.weight_hh = nn.Parameter(torch.randn(4 * hidden, hidden) / hidden**0.5)
        self.bias = nn.Parameter(torch.zeros(4 * hidden))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), self.hidden_size, dtype=x.dtype)
        c = torch.zeros_like(h)
        out = []
        for t in range(x.size(1)):
            gates = x[:, t] @ self.weight_ih.t() + h @ self.weight_hh.t() + self.bias
            i, f, g, o = gates.chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            out.append(h)
        return torch.stack(out, 1)


class _HandLSTMNet(nn.Module):
    def __init__(self, hidden: int = 112) -> None:
        super().__init__()
        self.rnn1, self.rnn2, self.fc = _HandLSTM(24, hidden), _HandLSTM(hidden, hidden), nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn2(self.rnn1(x))[:, -1])


def lstm_by_hand() -> nn.Module:
    return _HandLSTMNet()


class _MinGRU(nn.Module):
    """The gates do not see the state, so a loop of products is all there is."""

    def __init__(self, dim: int = 256) -> None:
        super().__init__()
        self.inp, self.to_z, self.to_h = nn.Linear(24, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        z, cand = torch.sigmoid(self.to_z(x)), self.to_h(x)
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = torch.lerp(h, cand[:, t], z[:, t])
        return self.out(h)


def min_gru() -> nn.Module:
    return _MinGRU()


CASES: dict[str, Case] = {
    "lstm_1": Case(lstm_1, steps),
    "lstm_3": Case(lstm_3, steps),
    "lstm_bidirectional_2": Case(lstm_bidirectional_2, steps),
    "lstm_proj": Case(lstm_proj, steps),
    "lstm_bidirectional_proj": Case(lstm_bidirectional_proj, steps),
    "lstm_without_bias": Case(lstm_without_bias, steps),
    "gru_1": Case(gru_1, steps),
    "gru_3": Case(gru_3, steps),
    "gru_bidirectional_2": Case(gru_bidirectional_2, steps),
    "rnn_tanh": Case(rnn_tanh, steps),
    "rnn_relu_bidirectional_2": Case(rnn_relu_bidirectional_2, steps),
    "lstm_text_hidden_head": Case(lstm_text_hidden_head, tokens),
    "gru_packed": Case(gru_packed, steps),
    "lstm_cells": Case(lstm_cells, steps),
    "gru_cells": Case(gru_cells, steps),
    "lstm_by_hand": Case(lstm_by_hand, steps),
    "min_gru": Case(min_gru, steps),
}
