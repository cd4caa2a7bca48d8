//! The rules of the house as data: our rooms, whom each may import, and which outside crates are
//! tied to a room. `docs/architecture.md` tells the same as prose.

/// One of our crates.
#[derive(Debug)]
pub(crate) struct Room {
    /// The crate's name.
    pub(crate) name: &'static str,
    /// Which of ours it may depend on, whether to run, to build or to test.
    pub(crate) imports: &'static [&'static str],
    /// Why no more.
    pub(crate) reason: &'static str,
}

/// Every room there is. A crate that is not listed has no place in the workspace.
pub(crate) const ROOMS: &[Room] = &[
    Room {
        name: "appliance",
        imports: &[
            "engine",
            "model",
            "neuron-backend",
            "cuda-backend",
            "cpu-backend",
        ],
        reason: "it is the top: it composes the engine, the model and the backends",
    },
    Room {
        name: "neuron-backend",
        imports: &["engine", "model", "graph", "neuron-sys"],
        reason: "a backend answers the engine's steps; it knows no other backend and no server",
    },
    Room {
        name: "cuda-backend",
        imports: &["engine", "model", "graph", "pjrt"],
        reason: "a backend answers the engine's steps; it knows no other backend and no server",
    },
    Room {
        name: "cpu-backend",
        imports: &["engine", "model"],
        reason: "a backend answers the engine's steps; it knows no other backend and no server",
    },
    Room {
        name: "graph",
        imports: &["engine", "model"],
        reason: "it lowers a decoder and packs a step; which device compiles it is not its concern",
    },
    Room {
        name: "fake-nrt",
        imports: &["neuron-sys", "pjrt", "graph"],
        reason: "it is a shared library that tests open by path, and reads the modules in its NEFFs; \
                 nothing that is served links it",
    },
    Room {
        name: "engine",
        imports: &[],
        reason: "it is a function of its inputs",
    },
    Room {
        name: "model",
        imports: &[],
        reason: "it describes what runs, not when, where or how",
    },
    Room {
        name: "neuron-sys",
        imports: &[],
        reason: "it is the C interface and nothing else",
    },
    Room {
        name: "pjrt",
        imports: &[],
        reason: "it is the C interface and nothing else",
    },
    Room {
        name: "appliance-tests",
        imports: &[
            "appliance",
            "neuron-backend",
            "cuda-backend",
            "cpu-backend",
            "graph",
            "fake-nrt",
            "engine",
            "model",
            "neuron-sys",
            "pjrt",
        ],
        reason: "tests may look at everything that is served",
    },
    Room {
        name: "xtask",
        imports: &[],
        reason: "chores must run before anything of ours builds",
    },
];

/// Rooms that are no part of what is served: outside crates are not tied against them.
pub(crate) const WORKSHOPS: &[&str] = &["appliance-tests", "xtask"];

/// Outside crates that only some rooms may depend on.
#[derive(Debug)]
pub(crate) struct Tie {
    /// Names of crates; one that ends in `*` stands for all that begin so.
    pub(crate) crates: &'static [&'static str],
    /// The rooms that may depend on them.
    pub(crate) rooms: &'static [&'static str],
    /// Why only those.
    pub(crate) reason: &'static str,
}

/// What is tied where.
pub(crate) const TIES: &[Tie] = &[
    Tie {
        crates: &["tokio", "tokio-*", "futures", "futures-*", "async-*"],
        rooms: &["appliance"],
        reason: "waiting on many clients is the appliance's work; below it are plain threads",
    },
    Tie {
        crates: &[
            "axum", "axum-*", "hyper", "hyper-*", "http", "http-*", "tower", "tower-*",
        ],
        rooms: &["appliance"],
        reason: "HTTP ends at the appliance",
    },
    Tie {
        crates: &["rustls", "rustls-*", "reqwest", "ureq", "hf-hub", "aws-*"],
        rooms: &["appliance"],
        reason: "only the appliance talks to the network",
    },
    Tie {
        crates: &[
            "tokenizers",
            "minijinja",
            "minijinja-*",
            "llguidance",
            "toktrie*",
        ],
        rooms: &["appliance"],
        reason: "text stops at the appliance: below it there are only token ids",
    },
    Tie {
        crates: &["clap", "clap_*", "toml", "sd-notify"],
        rooms: &["appliance"],
        reason: "settings and the host are the appliance's; below it values come as arguments",
    },
    Tie {
        crates: &[
            "tracing",
            "tracing-*",
            "log",
            "prometheus",
            "metrics",
            "metrics-*",
        ],
        rooms: &["appliance", "neuron-backend", "cuda-backend", "cpu-backend"],
        reason: "engine, model and graph report by what they return",
    },
    Tie {
        crates: &["nix", "libc", "rustix"],
        rooms: &["appliance", "neuron-backend", "cuda-backend", "cpu-backend"],
        reason: "signals are the appliance's, affinity and memory a backend's; no other room makes \
                 system calls of its own",
    },
    Tie {
        crates: &["safetensors", "memmap2"],
        rooms: &["model"],
        reason: "the model room alone reads weight files, and checks every foreign byte of them",
    },
    Tie {
        crates: &["prost", "prost-*"],
        rooms: &["graph"],
        reason: "HLO's messages are built in one place",
    },
    Tie {
        crates: &["libloading"],
        rooms: &["neuron-sys", "pjrt"],
        reason: "device libraries are opened at run time, in the crate that declares their symbols",
    },
];

/// A room that depends on these outside crates and no others.
#[derive(Debug)]
pub(crate) struct Short {
    /// The room.
    pub(crate) room: &'static str,
    /// What it may depend on to run.
    pub(crate) crates: &'static [&'static str],
    /// What it may depend on to be tested and measured.
    pub(crate) tests: &'static [&'static str],
    /// Why so few.
    pub(crate) reason: &'static str,
}

/// The rooms that must stay small.
pub(crate) const SHORT: &[Short] = &[Short {
    room: "engine",
    crates: &["siphasher", "thiserror"],
    tests: &["criterion", "proptest"],
    reason: "the engine is a function of its inputs: nothing in its reach can do input or output",
}];
