"""From a run's specification to its record: resolve, train, evaluate, store."""
