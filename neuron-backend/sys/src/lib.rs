//! The C interface of libnrt, opened at run time.
