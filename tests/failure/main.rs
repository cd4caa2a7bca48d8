//! What must not break it.
