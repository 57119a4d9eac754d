//! What gpudeck knows of each inference engine: command lines, probes, metric names, limits.
