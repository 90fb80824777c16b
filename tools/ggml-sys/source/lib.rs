//! Empty: this package is a list of one source.
