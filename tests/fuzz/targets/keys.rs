//! Whatever the text, keys of clients are refused or accepted, and what is accepted is written as it is read: no
//! panic, no endless loop, no huge allocation. Prompts are searched for what looks private likewise.

#![no_main]

use appliance::access::keys::Keys;
use appliance::access::redact;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(keys) = Keys::parse(text) {
        let lines: Vec<String> = keys.iter().map(ToString::to_string).collect();
        assert_eq!(Keys::parse(&lines.join("\n")), Ok(keys));
    }
    let masked = redact::mask(text);
    assert_eq!(redact::find(text).is_some(), masked != text);
});
