//! Candidates of a vocabulary that is folded and cut, against a sort of all logits.

use graph::{Activations, Bucket, Content, Form, Head, KvFormat, Slot, WeightFormat};
use model::{Activation, Attention, Decoder, Mlp, Rope, RopeScaling};

use crate::device::{Device, Entry, Row};

const HIDDEN: u32 = 8;

/// Nothing but an embedding, a norm and a head.
pub(crate) fn decoder(vocabulary: u32) -> Decoder {
    Decoder {
        vocabulary,
        hidden: HIDDEN,
        layers: 0,
        attention: Attention {
            heads: 8,
            kv_heads: 8,
            head_size: 2,
            input_bias: false,
            output_bias: false,
            head_norm: false,
            window: None,
            rope: Rope {
                theta: 10_000.0,
                scaling: RopeScaling::None,
            },
        },
        mlp: Mlp::Gated {
            size: 8,
            activation: Activation::Silu,
            bias: false,
        },
        norm_epsilon: 0.0,
        context: 16,
        tied_head: false,
    }
}

fn form(ranks: u32, candidates: u32) -> Form {
    Form {
        ranks,
        weights: WeightFormat::Bf16,
        activations: Activations::F32,
        kv: KvFormat::F32,
        fp8_max: 448,
        page_tokens: 16,
        pages: 2,
        context: 16,
        candidates,
    }
}

/// The logit of `id` for every token: BF16 numbers, many of them equal.
fn logit(id: u32) -> f32 {
    let mixed = id
        .wrapping_mul(0x9e37_79b9)
        .rotate_left(13)
        .wrapping_mul(0x85eb_ca6b);
    f32::from(i8::from_le_bytes([mixed.to_le_bytes()[3]])) / 16.0
}

/// A device whose hidden state is always `[1, 1, ..]`, and whose head gives the logits by its first
/// row. Rows of padding are not what they should be, so that they would be seen.
fn device(vocabulary: u32, form: &Form) -> Option<Device> {
    let decoder = decoder(vocabulary);
    let cut = graph::Cut::of(&decoder, form.ranks).expect("a cut");
    let halves = |numbers: &mut dyn Iterator<Item = f32>| {
        let halves = numbers.flat_map(|number| {
            let [_, _, low, high] = number.to_le_bytes();
            [low, high]
        });
        halves.collect::<Vec<_>>()
    };
    let constant = |rank: u32, port: &graph::Port| match port.content {
        Content::Rank => rank.to_le_bytes().to_vec(),
        Content::Weight(Slot::Embedding) => halves(&mut std::iter::repeat_n(
            0.5,
            (cut.vocabulary * HIDDEN) as usize,
        )),
        Content::Weight(Slot::Head) => {
            let first = rank * cut.vocabulary;
            let row = (0..cut.vocabulary).map(|column| match first + column {
                id if id < vocabulary => logit(id),
                _ => 100.0,
            });
            let zeros = std::iter::repeat_n(0.0, (cut.vocabulary * (HIDDEN - 1)) as usize);
            halves(&mut row.chain(zeros))
        }
        Content::Weight(_) => [1.0_f32; HIDDEN as usize].map(f32::to_le_bytes).concat(),
        _ => vec![0; usize::try_from(port.bytes()).expect("a size")],
    };
    Device::new(&decoder, form, &constant)
}

/// What an entry must be: the greatest logits, of equals the lowest ids.
fn expected(vocabulary: u32, candidates: u32) -> Entry {
    let mut all: Vec<_> = (0..vocabulary).map(|id| (id, logit(id))).collect();
    all.sort_by(|one, other| other.1.total_cmp(&one.1).then(one.0.cmp(&other.0)));
    let sum: f64 = all.iter().map(|(_, logit)| f64::from(*logit).exp()).sum();
    #[expect(clippy::cast_possible_truncation, reason = "logits are F32")]
    let normalizer = sum.ln() as f32;
    let best = all[..candidates as usize].iter();
    Entry {
        best: best.map(|(id, logit)| (*id, logit - normalizer)).collect(),
        normalizer,
        target: logit(vocabulary - 1) - normalizer,
    }
}

#[test]
fn the_best_of_a_vocabulary_that_is_folded_and_cut_are_those_of_a_sort() {
    // One fold; three and a bit; some ranks with padding only; more candidates than a rank has.
    for (vocabulary, ranks, candidates) in [
        (1000, 1, 7),
        (50_000, 1, 64),
        (50_000, 2, 256),
        (100, 4, 100),
        (70, 4, 33),
        (33_000, 8, 1),
    ] {
        let form = form(ranks, candidates);
        let Some(mut device) = device(vocabulary, &form) else {
            return;
        };
        let bucket = Bucket::Step {
            rows: 3,
            tokens: 1,
            pages: 0,
            head: Head::Last,
        };
        let mut rows = [1, 2].map(|_| Row::new(&[5], 0, &[1]));
        rows[1].targets = vec![vocabulary - 1];
        let entries = device.step(bucket, &rows);
        let expected = expected(vocabulary, candidates);
        let ids = |entry: &Entry| entry.best.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        let what = format!("{candidates} of {vocabulary} on {ranks}");
        for entry in &entries {
            assert_eq!(ids(entry), ids(&expected), "{what}");
            assert!(
                (entry.normalizer - expected.normalizer).abs() < 1e-4,
                "{what}"
            );
            let pairs = entry.best.iter().zip(&expected.best);
            for ((_, logprob), (_, expected)) in pairs {
                assert!((logprob - expected).abs() < 1e-4, "{what}");
            }
        }
        assert!((entries[1].target - expected.target).abs() < 1e-4, "{what}");
    }
}

#[test]
fn ids_are_found_by_comparing_as_by_gathering() {
    // Above 4 million pairs of a place and a candidate they are gathered.
    let (vocabulary, candidates) = (40_000, 256);
    let form = form(4, candidates);
    let Some(mut device) = device(vocabulary, &form) else {
        return;
    };
    let bucket = |rows| Bucket::Step {
        rows,
        tokens: 1,
        pages: 0,
        head: Head::Last,
    };
    let few = device.step(bucket(1), &[Row::new(&[5], 0, &[1])]);
    let rows = vec![Row::new(&[5], 0, &[1]); 40];
    let many = device.step(bucket(40), &rows);
    assert!(many.iter().all(|entry| *entry == few[0]));
}
