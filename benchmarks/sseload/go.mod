module sseload

go 1.22
