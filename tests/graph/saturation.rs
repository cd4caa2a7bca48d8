//! Keys and values too large for eight bits.

use graph::{Activations, Bucket, Content, Form, Head, KvFormat, LayerSlot, Slot, WeightFormat};

use crate::candidates::decoder;
use crate::device::{Device, Row};

/// The code of the largest number that is allowed.
const LARGEST: [(u32, u8); 2] = [(240, 0x77), (448, 0x7e)];

#[test]
fn keys_and_values_too_large_for_eight_bits_become_the_largest() {
    let mut decoder = decoder(64);
    decoder.layers = 1;
    for (fp8_max, code) in LARGEST {
        let form = Form {
            ranks: 1,
            weights: WeightFormat::Bf16,
            activations: Activations::Bf16,
            kv: KvFormat::Fp8,
            fp8_max,
            page_tokens: 4,
            pages: 2,
            context: 4,
            candidates: 1,
        };
        // All weights are 64, so values are 8 x 64 x 64.
        let constant = |_: u32, port: &graph::Port| match (port.content, port.element.bytes()) {
            (Content::Weight(Slot::Layer(_, LayerSlot::Output)), _) | (Content::Rank, _) => {
                vec![0; usize::try_from(port.bytes()).expect("a size")]
            }
            (_, 2) => [0x80, 0x42].repeat(usize::try_from(port.len()).expect("a size")),
            _ => 64_f32
                .to_le_bytes()
                .repeat(usize::try_from(port.len()).expect("a size")),
        };
        let Some(mut device) = Device::new(&decoder, &form, &constant) else {
            return;
        };
        let bucket = Bucket::Step {
            rows: 1,
            tokens: 1,
            pages: 0,
            head: Head::Last,
        };
        device.step(bucket, &[Row::new(&[1], 0, &[1])]);
        let caches = device.cache_bytes();
        let values = &caches[1];
        let own = values.len() / 8 * 4..values.len() / 8 * 5;
        assert!(values[own].iter().all(|value| *value == code));
    }
}
