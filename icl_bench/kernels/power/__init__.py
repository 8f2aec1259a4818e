"""Power attention: scores `(q.k)^p`, p = 1 being linear attention."""
