//! Where text becomes tokens and tokens become text again: nothing below the appliance sees a string.

mod detokenizer;
mod spelling;
mod stops;
mod template;
mod tokenizer;
mod tokenizer_config;

pub use detokenizer::Detokenizer;
pub use stops::{Stopped, Stops};
pub use template::{Template, TemplateError, TemplateOptions};
pub use tokenizer::{TextError, Tokenizer};
