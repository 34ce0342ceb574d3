module flagd-export-oracle

go 1.25.0

require github.com/open-feature/flagd/core v0.16.1
