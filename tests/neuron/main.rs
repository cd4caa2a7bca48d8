//! The Neuron path against a libnrt that stands in for the real one (`neuron-backend/fake-nrt`).
//! The runtime takes its settings from the environment and there is one for each process, so every
//! test runs in a process of its own.

mod alone;
mod doctor;
mod faults;
mod nrt;
mod objects;
mod prepare;
mod served;
