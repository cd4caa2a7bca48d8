//! A model that is being served: everything a request needs to know of it.

use std::sync::Arc;

use engine::TokenId;
use model::GenerationDefaults;

use crate::generation::Generator;
use crate::health::Pulse;
use crate::text::{Template, Tokenizer};

/// A model that is being served. Made once it is loaded, shared by all requests.
#[derive(Debug)]
pub struct Served {
    /// Its name in the API.
    pub name: String,
    /// Seconds since the epoch when it was loaded.
    pub created: u64,
    /// The most tokens of a sequence, prompt and output together.
    pub context: u32,
    /// Token ids are below it.
    pub vocabulary: u32,
    /// The most log-probabilities that the device can report beside a token.
    pub candidates: u32,
    /// Tokens that end a generation unless they are to be ignored; ascending.
    pub eos: Vec<TokenId>,
    /// What the model's authors advise for sampling, where a request says nothing.
    pub defaults: GenerationDefaults,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Messages to text.
    pub template: Template,
    /// Ids to answers.
    pub generator: Generator,
    /// When each of its engines last made progress.
    pub pulses: Box<[Arc<Pulse>]>,
}
