"""Recurrent nets of translation, tagging, speech and control as their users write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Case
from own_recurrent import steps, tokens
from torch import Tensor, nn


class _Seq2Seq(nn.Module):
    """Translation with additive attention over the encoder's steps and a teacher's target."""

    def __init__(self, vocab: int = 400, emb: int = 48, enc: int = 64, dec: int = 80) -> None:
        super().__init__()
        self.src, self.trg = nn.Embedding(vocab, emb), nn.Embedding(vocab, emb)
        self.encoder, self.bridge = nn.GRU(emb, enc, bidirectional=True), nn.Linear(2 * enc, dec)
        self.attn, self.v = nn.Linear(2 * enc + dec, dec), nn.Linear(dec, 1, bias=False)
        self.decoder = nn.GRU(2 * enc + emb, dec)
        self.fc_out = nn.Linear(2 * enc + dec + emb, 200)

    def forward(self, src: Tensor, trg: Tensor) -> Tensor:
        encoded, hidden = self.encoder(self.src(src.t()))
        hidden = torch.tanh(self.bridge(torch.cat((hidden[-2], hidden[-1]), dim=1)))
        outputs = []
        for token in trg.t():
            embedded = self.trg(token.unsqueeze(0))
            repeated = hidden.unsqueeze(1).repeat(1, encoded.shape[0], 1)
            memory = encoded.permute(1, 0, 2)
            a = F.softmax(self.v(torch.tanh(self.attn(torch.cat((repeated, memory), 2)))).squeeze(2), dim=1)
            weighted = torch.bmm(a.unsqueeze(1), memory).permute(1, 0, 2)
            output, h = self.decoder(torch.cat((embedded, weighted), dim=2), hidden.unsqueeze(0))
            hidden = h.squeeze(0)
            outputs.append(self.fc_out(torch.cat((output.squeeze(0), weighted.squeeze(0), embedded.squeeze(0)), dim=1)))
        return torch.stack(outputs, 1)


def seq2seq_attention() -> nn.Module:
    return _Seq2Seq()


class _DotSeq2Seq(nn.Module):
    """Translation with the states of a two-layer LSTM handed over, and attention by dot product."""

    def __init__(self, vocab: int = 400, dim: int = 80) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.encoder, self.decoder = nn.LSTM(dim, dim, 2, batch_first=True), nn.LSTM(dim, dim, 2, batch_first=True)
        self.combine, self.out = nn.Linear(2 * dim, dim, bias=False), nn.Linear(dim, vocab)

    def forward(self, src: Tensor, trg: Tensor) -> Tensor:
        memory, state = self.encoder(self.embed(src))
        found, _ = self.decoder(self.embed(trg), state)
        weights = (found @ memory.transpose(1, 2)).softmax(-1)
        return self.out(torch.tanh(self.combine(torch.cat((weights @ memory, found), -1))))


def seq2seq_dot() -> nn.Module:
    return _DotSeq2Seq()


class _WeightTiedLM(nn.Module):
    """A language model: three LSTMs one by one, the last as wide as the embedding, whose weight is the decoder's."""

    def __init__(self, vocab: int = 400, emb: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.ninp, self.nhid = emb, hidden
        self.encoder = nn.Embedding(vocab, emb)
        widths = [emb, hidden, hidden, emb]
        self.rnns = nn.ModuleList(nn.LSTM(widths[i], widths[i + 1], batch_first=True) for i in range(3))
        self.decoder = nn.Linear(emb, vocab)
        self.decoder.weight = self.encoder.weight

    def forward(self, text: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        raw = F.dropout(self.encoder(text), 0.4, self.training)
        states = []
        for rnn in self.rnns:
            raw, state = rnn(raw)
            states.append(state)
        output = raw.contiguous()
        decoded = self.decoder(output.view(output.size(0) * output.size(1), output.size(2)))
        return decoded.view(output.size(0), output.size(1), decoded.size(1)), states


class _ScoresOnly(_WeightTiedLM):
    """The same as it is trained: the states stay inside."""

    def forward(self, text: Tensor) -> Tensor:
        return super().forward(text)[0]


def awd_scores_only() -> nn.Module:
    return _ScoresOnly()


def awd_language_model() -> nn.Module:
    return _WeightTiedLM()


class _VoiceEncoder(nn.Module):
    """Resemblyzer's encoder of voices: the last hidden state, projected, rectified, of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        self.relu = nn.ReLU()

    def forward(self, mels: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mels)
        raw = self.relu(self.linear(hidden[-1]))
        return raw / torch.norm(raw, dim=1, keepdim=True)


def voice_encoder() -> nn.Module:
    return _VoiceEncoder()


class _SileroVAD(nn.Module):
    """Voice activity: a Fourier basis as a frozen convolution, an encoder, a cell with its state, a decoder."""

    def __init__(self, n_fft: int = 64, hop: int = 32, hidden: int = 96) -> None:
        super().__init__()
        self.filter_length, self.hop = n_fft, hop
        cutoff = n_fft // 2 + 1
        angles = 2 * torch.pi * torch.arange(cutoff)[:, None] * torch.arange(n_fft)[None] / n_fft
        basis = torch.cat([angles.cos(), -angles.sin()]) * torch.hann_window(n_fft)
        self.register_buffer("forward_basis_buffer", basis.unsqueeze(1))
        widths = (cutoff, 96, 64, 64, hidden)
        self.encoder = nn.Sequential(
            *[
                nn.Sequential(nn.Conv1d(widths[i], widths[i + 1], 3, s, 1), nn.ReLU())
                for i, s in enumerate((1, 2, 2, 1))
            ]
        )
        self.rnn = nn.LSTMCell(hidden, hidden)
        self.decoder = nn.Sequential(nn.Dropout(0.1), nn.ReLU(), nn.Conv1d(hidden, 1, 1), nn.Sigmoid())

    def stft(self, x: Tensor) -> Tensor:
        x = F.pad(x.unsqueeze(1), (0, self.filter_length // 2), mode="reflect")
        x = F.conv1d(x, self.forward_basis_buffer, stride=self.hop)
        cutoff = self.filter_length // 2 + 1
        real, imag = x[:, :cutoff, :], x[:, cutoff:, :]
        return torch.sqrt(real**2 + imag**2)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y = self.encoder(self.stft(x)).squeeze(-1)
        h, c = self.rnn(y, (state[0], state[1]))
        out = self.decoder(h.unsqueeze(-1))
        return out.squeeze(1).mean(dim=1, keepdim=True), torch.stack((h, c))


def silero_vad() -> nn.Module:
    return _SileroVAD()


class _ConvLSTMCell(nn.Module):
    def __init__(self, cin: int, hidden: int, k: int = 3) -> None:
        super().__init__()
        self.hidden_dim = hidden
        self.conv = nn.Conv2d(cin + hidden, 4 * hidden, k, padding=k // 2)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, o, g = torch.split(self.conv(torch.cat([x, h], dim=1)), self.hidden_dim, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class _ConvLSTM(nn.Module):
    """The next frame of a film."""

    def __init__(self, hidden: int = 40) -> None:
        super().__init__()
        self.cell1, self.cell2 = _ConvLSTMCell(1, hidden), _ConvLSTMCell(hidden, hidden)
        self.out = nn.Conv2d(hidden, 1, 1)

    def forward(self, film: Tensor) -> Tensor:
        b, _, _, height, width = film.shape
        h1 = film.new_zeros(b, self.cell1.hidden_dim, height, width)
        c1, h2, c2 = h1.clone(), h1.clone(), h1.clone()
        for t in range(film.size(1)):
            h1, c1 = self.cell1(film[:, t], h1, c1)
            h2, c2 = self.cell2(h1, h2, c2)
        return self.out(h2)


def conv_lstm() -> nn.Module:
    return _ConvLSTM()


class _BiLSTMTagger(nn.Module):
    """Letters by a convolution, words by a table, read both ways; scores of the tags and of what follows what."""

    def __init__(self, vocab: int = 400, letters: int = 60, tags: int = 9) -> None:
        super().__init__()
        self.words, self.chars = nn.Embedding(vocab, 64), nn.Embedding(letters, 24)
        self.char_cnn = nn.Conv1d(24, 32, 3, padding=1)
        self.lstm = nn.LSTM(96, 80, batch_first=True, bidirectional=True)
        self.hidden2tag = nn.Linear(160, tags)
        self.transitions = nn.Parameter(torch.randn(tags, tags))

    def forward(self, words: Tensor, chars: Tensor) -> Tensor:
        b, n, k = chars.shape
        c = self.chars(chars).view(b * n, k, -1).transpose(1, 2)
        c = self.char_cnn(c).max(dim=2).values.view(b, n, -1)
        emissions = self.hidden2tag(self.lstm(torch.cat([self.words(words), c], dim=-1))[0])
        alpha = emissions[:, 0]
        for t in range(1, n):
            alpha = torch.logsumexp(alpha.unsqueeze(2) + self.transitions, dim=1) + emissions[:, t]
        return alpha


def bilstm_crf_tagger() -> nn.Module:
    return _BiLSTMTagger()


class _AttentiveLSTM(nn.Module):
    """A forecast: the steps of an LSTM weighed by a learned score."""

    def __init__(self, hidden: int = 160) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(24)
        self.lstm = nn.LSTM(24, hidden, batch_first=True)
        self.score = nn.Sequential(nn.Linear(hidden, 48), nn.Tanh(), nn.Linear(48, 1))
        self.out = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.lstm(self.input_norm(x))
        weights = torch.softmax(self.score(h), dim=1)
        return self.out((weights * h).sum(dim=1))


def lstm_attention_pool() -> nn.Module:
    return _AttentiveLSTM()


class _ActorCritic(nn.Module):
    """A policy and a value on a shared body with a recurrent memory, in a dict."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(24, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.memory = nn.GRU(hidden, hidden, batch_first=True)
        self.actor, self.critic = nn.Linear(hidden, 6), nn.Linear(hidden, 1)
        self.log_std = nn.Parameter(torch.zeros(6))

    def forward(self, obs: Tensor) -> dict[str, Tensor]:
        h, state = self.memory(self.body(obs))
        mean = self.actor(h)
        return {
            "mean": mean,
            "std": self.log_std.exp().expand_as(mean),
            "value": self.critic(h).squeeze(-1),
            "h": state,
        }


def actor_critic_gru() -> nn.Module:
    return _ActorCritic()


def pair() -> tuple[Tensor, Tensor]:
    return torch.randint(0, 400, (2, 9)), torch.randint(0, 400, (2, 5))


CASES: dict[str, Case] = {
    "seq2seq_attention": Case(seq2seq_attention, pair),
    "seq2seq_dot": Case(seq2seq_dot, pair),
    "awd_language_model": Case(awd_language_model, tokens),
    "awd_scores_only": Case(awd_scores_only, tokens),
    "voice_encoder": Case(voice_encoder, lambda: torch.randn(2, 20, 40)),
    "silero_vad": Case(silero_vad, lambda: (torch.randn(2, 128), torch.randn(2, 2, 96))),
    "conv_lstm": Case(conv_lstm, lambda: torch.randn(1, 4, 1, 12, 12)),
    "bilstm_crf_tagger": Case(
        bilstm_crf_tagger, lambda: (torch.randint(0, 400, (2, 7)), torch.randint(0, 60, (2, 7, 6)))
    ),
    "lstm_attention_pool": Case(lstm_attention_pool, steps),
    "actor_critic_gru": Case(actor_critic_gru, steps),
}
