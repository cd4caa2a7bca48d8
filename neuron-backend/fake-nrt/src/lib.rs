//! A libnrt that stands in for the real one in tests.
