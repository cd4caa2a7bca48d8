//! The C interface of XLA's plugins, opened at run time.
