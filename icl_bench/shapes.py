"""The axis letters used in every name, signature and comment.

| letter | axis |
| --- | --- |
| M | member of a fleet |
| B | batch: examples of one member |
| N | sequences that a kernel sees, M·B |
| T | time: positions in a sequence |
| S | scored positions of an example |
| C | model width |
| H | query heads |
| G | key-value heads; H is a multiple of G |
| K | key width of a head |
| V | value width of a head |
| D | expanded key width, C(K + p - 1, p) for the symmetric power p |
| W | vocabulary |
| L | length of a convolution or a window |
"""
