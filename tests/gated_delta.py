"""The gated delta rule (Yang et al., arXiv 2412.06464), as a layer of one's own: S <- a S (I - b k k^T) + b v k^T."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class GatedDelta(nn.Module):
    """One head whose state is a matrix of d_head by d_head."""

    def __init__(self, d_model: int, d_head: int = 16) -> None:
        super().__init__()
        self.d_head = d_head
        self.project = nn.Linear(d_model, 3 * d_head, bias=False)
        self.gates = nn.Linear(d_model, 2)
        self.out = nn.Linear(d_head, d_model, bias=False)
        nn.init.constant_(self.gates.bias, 3.0)  # keep and write nearly everything at the start

    def initial_state(self, batch: int) -> Tensor:
        return self.out.weight.new_zeros(batch, self.d_head, self.d_head)

    def step(self, x: Tensor, state: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Read and write one token: x [B, C] and the state [B, V, K] -> the output [B, C] and the next state."""
        q, k, v = self.project(x).chunk(3, dim=-1)
        q, k = normalize(q, dim=-1), normalize(k, dim=-1)
        keep, write = self.gates(x).sigmoid().split(1, dim=-1)
        state = keep[..., None] * state
        error = v - torch.einsum("bvk,bk->bv", state, k)
        state = state + torch.einsum("bv,bk->bvk", write * error, k)
        return self.out(torch.einsum("bvk,bk->bv", state, q)), state

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, C] to [B, T, C], one token after the other."""
        state, rows = self.initial_state(x.shape[0]), []
        for t in range(x.shape[1]):
            row, state = self.step(x[:, t], state, t)
            rows.append(row)
        return torch.stack(rows, dim=1)

    def state_elements(self, length: int) -> int:
        return self.d_head**2
