"""G1-G9: the workloads on one GPU, four to sixteen times as large; rehearsed on the host where there is none."""
