//! Whatever the bytes, model.safetensors.index.json is refused or accepted: no panic, no endless loop, no huge allocation.

#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let _ = model::parsers::index(file);
});
