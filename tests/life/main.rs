//! The life of the server on a host, with the real binary: what systemd is told and keeps, what a model
//! must prove, and what Auto Scaling asks for.

mod golden;
mod instance;
mod systemd;
