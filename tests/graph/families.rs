//! Every golden family: logits, greedy answers, ranks, formats, padding, copies.

use appliance_tests::golden::Family;
use graph::{Activations, Bucket, Form, Head, KvFormat, Tiles, WeightFormat};

use crate::device::{Device, Entry, Row};

/// Positions of the tests' sequences: the goldens' prompt and answer.
const CONTEXT: u32 = 128;

/// Pages of a sequence, in no particular order.
const PAGES: [u32; 8] = [3, 7, 1, 9, 4, 12, 2, 6];

/// All logits are asked for: the goldens' vocabularies have 256 tokens.
const ALL: u32 = 256;

fn form() -> Form {
    Form {
        ranks: 1,
        weights: WeightFormat::Bf16,
        activations: Activations::F32,
        kv: KvFormat::F32,
        fp8_max: 448,
        page_tokens: 16,
        pages: 24,
        context: CONTEXT,
        candidates: ALL,
    }
}

fn prefill(tokens: u32, pages: u32, head: Head) -> Bucket {
    Bucket::Step {
        rows: 1,
        tokens,
        pages,
        head,
    }
}

fn decode(rows: u32, pages: u32) -> Bucket {
    Bucket::Step {
        rows,
        tokens: 1,
        pages,
        head: Head::Last,
    }
}

fn opened(family: &Family, form: Form) -> Option<Device> {
    Device::open(&family.model(false).path, &form)
}

/// Runs the prompt in chunks of 32 tokens and gives the entry after each token.
fn prompted(device: &mut Device, family: &Family) -> Vec<Entry> {
    let chunks = family.prompt.chunks(32).enumerate();
    let entries = chunks.flat_map(|(chunk, tokens)| {
        let row = Row::new(tokens, chunk * 32, &PAGES);
        device.step(prefill(32, 6, Head::Each), &[row])
    });
    entries.collect()
}

/// How far entries are from the golden logits at the most.
fn error(family: &Family, entries: &[Entry]) -> f32 {
    let errors = family.logits.iter().flat_map(|(place, golden)| {
        let logits = entries[*place].logits();
        let pairs = logits.into_iter().zip(golden);
        pairs.map(|(logit, golden)| (logit - golden).abs())
    });
    errors.fold(0.0, f32::max)
}

/// Continues greedily, one token a step, from the entry after the prompt.
fn continued(device: &mut Device, family: &Family, first: &Entry) -> Vec<u32> {
    let mut answer = vec![first.best[0].0];
    while answer.len() < family.greedy.len() {
        let token = answer[answer.len() - 1..].to_vec();
        let start = family.prompt.len() + answer.len() - 1;
        let entry = device.step(decode(2, 8), &[Row::new(&token, start, &PAGES)]);
        answer.push(entry[0].best[0].0);
    }
    answer
}

#[test]
fn every_family_gives_the_golden_logits_and_tokens_in_f32() {
    for family in Family::all() {
        let Some(mut device) = opened(&family, form()) else {
            return;
        };
        let entries = prompted(&mut device, &family);
        let error = error(&family, &entries);
        assert!(error < 1e-3, "{}: {error}", family.name);
        let answer = continued(&mut device, &family, &entries[entries.len() - 1]);
        assert_eq!(answer, family.greedy, "{}", family.name);
    }
}

/// The families that differ most: with a window, with head norms, with biases, with an odd number
/// of heads, with experts.
fn some() -> impl Iterator<Item = Family> {
    let names = [
        "llama-biased",
        "mistral",
        "mixtral",
        "qwen3",
        "qwen3-moe",
        "smollm2",
    ];
    let all = Family::all().into_iter();
    all.filter(move |family| names.contains(&family.name.as_str()))
}

fn named(name: &str) -> Family {
    let mut all = Family::all().into_iter();
    all.find(|family| family.name == name).expect("a family")
}

/// The greatest difference of two entries' logits.
fn apart(one: &Entry, other: &Entry) -> f32 {
    let pairs = one.logits().into_iter().zip(other.logits());
    pairs
        .map(|(one, other)| (one - other).abs())
        .fold(0.0, f32::max)
}

fn greatest_difference(one: &[Entry], other: &[Entry]) -> f32 {
    assert_eq!(one.len(), other.len());
    let pairs = one.iter().zip(other);
    pairs
        .map(|(one, other)| apart(one, other))
        .fold(0.0, f32::max)
}

/// The standard deviation of the golden logits: what errors are measured by.
#[expect(clippy::cast_precision_loss, reason = "there are few")]
fn spread(family: &Family) -> f32 {
    let logits: Vec<_> = family
        .logits
        .iter()
        .flat_map(|(_, golden)| golden)
        .collect();
    let count = logits.len() as f32;
    let mean = logits.iter().copied().sum::<f32>() / count;
    let squares: f32 = logits.iter().map(|logit| (*logit - mean).powi(2)).sum();
    (squares / count).sqrt()
}

#[test]
fn weights_in_eight_bits_give_what_the_numbers_they_stand_for_give() {
    for (family, format) in some().zip([WeightFormat::Fp8, WeightFormat::Int8].iter().cycle()) {
        for ranks in [1, 3]
            .into_iter()
            .filter(|ranks| *ranks == 1 || family.name == "smollm2")
        {
            let exact = Form { ranks, ..form() };
            let path = family.model(false).path;
            let Some(mut exact) = Device::rounded(&path, &exact, Some(*format)) else {
                return;
            };
            let weights = *format;
            let form = Form {
                weights,
                ranks,
                ..form()
            };
            let mut device = Device::open(&path, &form).expect("a device");
            let expected = prompted(&mut exact, &family);
            let difference = greatest_difference(&expected, &prompted(&mut device, &family));
            assert!(
                difference < 1e-4,
                "{} {format:?}: {difference}",
                family.name
            );
        }
    }
}

#[test]
fn every_format_stays_as_near_to_the_golden_logits_as_its_rounding_allows() {
    // The greatest error of 2048 logits, in standard deviations of the logits. A BF16 number is
    // off by up to 1 in 512, an E4M3 number by up to 1 in 16.
    let formats = [
        (Activations::F32, WeightFormat::Bf16, KvFormat::Bf16, 0.04),
        (Activations::Bf16, WeightFormat::Bf16, KvFormat::Bf16, 0.08),
        (Activations::Bf16, WeightFormat::Int8, KvFormat::Bf16, 0.2),
        (Activations::Bf16, WeightFormat::Fp8, KvFormat::Fp8, 0.8),
    ];
    for family in [named("qwen3"), named("smollm2")] {
        for (activations, weights, kv, bound) in formats {
            let form = Form {
                activations,
                weights,
                kv,
                ..form()
            };
            let Some(mut device) = opened(&family, form.clone()) else {
                return;
            };
            let error = error(&family, &prompted(&mut device, &family)) / spread(&family);
            assert!(error < bound, "{}, {form:?}: {error}", family.name);
        }
    }
}

#[test]
fn ranks_give_together_what_one_gives() {
    for family in [named("llama-biased"), named("qwen3"), named("smollm2")] {
        let degrees: &[u32] = match family.name.as_str() {
            "smollm2" => &[3],
            _ => &[2, 4],
        };
        for (activations, kv, bound) in [
            (Activations::F32, KvFormat::F32, 1e-4),
            // Each is off by its own rounding.
            (Activations::Bf16, KvFormat::Bf16, 0.08 * spread(&family)),
        ] {
            let form = Form {
                activations,
                kv,
                ..form()
            };
            let Some(mut alone) = opened(&family, form.clone()) else {
                return;
            };
            let expected = prompted(&mut alone, &family);
            for ranks in degrees {
                let form = Form {
                    ranks: *ranks,
                    ..form.clone()
                };
                let mut device = opened(&family, form).expect("devices");
                let entries = prompted(&mut device, &family);
                let difference = greatest_difference(&expected, &entries);
                assert!(difference < bound, "{} {ranks}: {difference}", family.name);
                if activations == Activations::F32 {
                    let last = &entries[entries.len() - 1];
                    let answer = continued(&mut device, &family, last);
                    assert_eq!(answer, family.greedy, "{} {ranks}", family.name);
                }
            }
        }
    }
}

#[test]
fn tiles_and_segments_change_nothing() {
    for family in some() {
        let Some(mut whole) = opened(&family, form()) else {
            return;
        };
        let bucket = prefill(96, 2, Head::Each);
        let row = || Row::new(&family.prompt, 0, &PAGES);
        let expected = whole.step(bucket, &[row()]);
        let error = error(&family, &expected);
        assert!(error < 1e-3, "{}: {error}", family.name);

        let mut cut = opened(&family, form()).expect("a device");
        cut.tiles = Tiles {
            queries: 20,
            positions: 28,
            bytes: 1 << 20,
        };
        let entries = cut.step(bucket, &[row()]);
        let difference = greatest_difference(&expected, &entries);
        assert!(difference < 1e-4, "{}: {difference}", family.name);

        // Pages before, of which a segment holds one.
        let mut chunked = opened(&family, form()).expect("a device");
        chunked.tiles = Tiles {
            queries: 7,
            positions: 16,
            bytes: 1 << 20,
        };
        let entries = prompted(&mut chunked, &family);
        let difference = greatest_difference(&expected, &entries);
        assert!(difference < 1e-4, "{}: {difference}", family.name);
    }
}

#[test]
fn a_token_sees_the_same_in_its_own_chunk_and_in_a_page_before() {
    let family = named("llama3");
    // Sums of other segments differ in their last bits, and now and then a key is therefore rounded
    // to the next number: 3 of the BF16 keys of this prompt. What rounding all keys and values does
    // to logits is far more, 2e-2 in BF16 (the families' errors above), so these bounds tell whether
    // own ones are rounded too.
    for (kv, bound) in [
        (KvFormat::F32, 1e-4),
        (KvFormat::Bf16, 2e-3),
        (KvFormat::Fp8, 2e-2),
    ] {
        let form = Form { kv, ..form() };
        let Some(mut device) = opened(&family, form) else {
            return;
        };
        let row = Row::new(&family.prompt, 0, &PAGES);
        let cold = device.step(prefill(96, 2, Head::Each), &[row]);
        let chunked = prompted(&mut device, &family);
        let difference = greatest_difference(&cold, &chunked);
        assert!(difference < bound, "{kv:?}: {difference}");
        for (place, token) in family.prompt.iter().enumerate().skip(90) {
            let row = Row::new(std::slice::from_ref(token), place, &PAGES);
            let alone = device.step(decode(2, 8), &[row]);
            let difference = apart(&cold[place], &alone[0]);
            assert!(difference < bound, "{kv:?}: {difference}");
        }
    }
}

#[test]
fn experts_that_were_gathered_give_what_all_give() {
    for name in ["mixtral", "qwen3-moe"] {
        let family = named(name);
        for weights in [WeightFormat::Bf16, WeightFormat::Fp8, WeightFormat::Int8] {
            for ranks in [1, 2] {
                let form = Form {
                    weights,
                    ranks,
                    ..form()
                };
                let Some(mut device) = opened(&family, form) else {
                    return;
                };
                let all = prompted(&mut device, &family);
                // A chunk's tokens choose more experts than there are, one or two fewer.
                device.tiles.bytes = 1 << 12;
                for place in (81..95).step_by(4) {
                    let tokens = &family.prompt[place..place + 2];
                    let [first, second] = [0, 1].map(|at| &tokens[at..at + 1]);
                    let rows = [
                        Row::new(first, place, &PAGES),
                        Row::new(second, place + 1, &PAGES),
                    ];
                    for rows in [&rows[..1], &rows] {
                        let bucket = decode(u32::try_from(rows.len()).expect("few"), 8);
                        let some = device.step(bucket, rows);
                        let difference = greatest_difference(&all[place..][..rows.len()], &some);
                        let form = &device.form;
                        assert!(difference < 1e-4, "{name} {form:?}: {difference}");
                    }
                }
            }
        }
    }
}

#[test]
fn rows_do_not_see_each_other_and_padding_writes_nowhere() {
    let family = named("mistral");
    let Some(mut device) = opened(&family, form()) else {
        return;
    };
    let entries = prompted(&mut device, &family);
    let other_pages = [20, 21, 22, 23, 18, 19];
    let other: Vec<_> = family.prompt.iter().rev().copied().collect();
    for (chunk, tokens) in other[..64].chunks(32).enumerate() {
        let row = Row::new(tokens, chunk * 32, &other_pages);
        device.step(prefill(32, 6, Head::Each), &[row]);
    }
    // A row of 64 tokens, one of 95 that is asked for its last again, one of 5 tokens, padding.
    let before = device.cache_bytes();
    let (last, next) = (family.prompt[95], other[64]);
    let (last, next) = (std::slice::from_ref(&last), std::slice::from_ref(&next));
    let rows = [
        Row::new(next, 64, &other_pages),
        Row::new(last, 95, &PAGES),
        Row::new(last, 0, &[17]),
    ];
    let together = device.step(decode(4, 8), &rows);
    let difference = apart(&together[1], &entries[95]);
    assert!(difference < 1e-4, "{difference}");
    let after = device.cache_bytes();
    let written: Vec<_> = [(18, 0), (PAGES[5], 15), (17, 0)]
        .map(|(page, place)| page as usize * 16 + place)
        .into();
    for (before, after) in before.iter().zip(&after) {
        let row = before.len() / (24 * 16);
        let pairs = before.chunks(row).zip(after.chunks(row));
        for (slot, (before, after)) in pairs.enumerate() {
            let is_null_page = (1..16).contains(&slot);
            if !is_null_page && !written.contains(&slot) {
                assert_eq!(before, after, "slot {slot}");
            }
        }
    }
    for (place, row) in rows.iter().enumerate() {
        let alone = device.step(decode(4, 8), std::slice::from_ref(row));
        assert_eq!(alone[0], together[place], "row {place}");
    }
}

#[test]
fn rows_of_several_tokens_and_other_lengths_give_their_own_last() {
    for name in ["qwen2", "mistral"] {
        let family = named(name);
        let Some(mut device) = opened(&family, form()) else {
            return;
        };
        let entries = prompted(&mut device, &family);
        let rows = [
            Row::new(&family.prompt[32..64], 32, &PAGES),
            Row::new(&family.prompt[..13], 0, &[20]),
            Row::new(&family.prompt[64..71], 64, &PAGES),
        ];
        let bucket = Bucket::Step {
            rows: 3,
            tokens: 32,
            pages: 4,
            head: Head::Last,
        };
        let given = device.step(bucket, &rows);
        for (given, place) in given.iter().zip([63, 12, 70]) {
            let difference = apart(given, &entries[place]);
            assert!(difference < 1e-4, "{place}: {difference}");
        }
    }
}

#[test]
fn targets_are_weighed_and_masks_leave_only_what_they_allow() {
    let family = named("llama3");
    for ranks in [1, 4] {
        let form = Form { ranks, ..form() };
        let Some(mut device) = opened(&family, form) else {
            return;
        };
        let tokens = &family.prompt[..32];
        let mut row = Row::new(tokens, 0, &PAGES);
        row.targets = family.prompt[1..33].to_vec();
        let free = device.step(prefill(32, 6, Head::Each), &[row.clone()]);
        for (entry, target) in free.iter().zip(&row.targets) {
            let logprob = entry.logits()[*target as usize] - entry.normalizer;
            assert!((entry.target - logprob).abs() < 1e-5);
            let sum: f32 = entry.best.iter().map(|(_, logprob)| logprob.exp()).sum();
            assert!((sum - 1.0).abs() < 1e-4, "{sum}");
        }
        // Every token its own mask: three tokens are allowed.
        let allowed = |place: u32| [place, 100 + place, 255];
        row.masks = (0..32)
            .map(|place| {
                let mut mask = vec![0_u32; 8];
                for id in allowed(place) {
                    mask[id as usize / 32] |= 1 << (id % 32);
                }
                mask
            })
            .collect();
        row.targets = (0..32).map(|place| 100 + place).collect();
        let masked = device.step(prefill(32, 6, Head::Each), &[row]);
        for (place, (masked, free)) in (0..).zip(masked.iter().zip(&free)) {
            let logits = free.logits();
            let sum: f32 = allowed(place)
                .map(|id| logits[id as usize].exp())
                .iter()
                .sum();
            assert!((masked.normalizer - sum.ln()).abs() < 1e-4);
            let target = logits[100 + place as usize] - sum.ln();
            assert!((masked.target - target).abs() < 1e-4);
            let mut best: Vec<_> = masked.best[..3].iter().map(|(id, _)| *id).collect();
            best.sort_unstable();
            assert_eq!(best, allowed(place));
            assert!(masked.best[3..].iter().all(|(_, logprob)| *logprob < -1e29));
        }
    }
}

#[test]
fn pages_are_copied_in_all_layers() {
    let family = named("qwen3");
    let form = Form {
        kv: KvFormat::Fp8,
        ranks: 2,
        ..form()
    };
    let Some(mut device) = opened(&family, form) else {
        return;
    };
    let entries = prompted(&mut device, &family);
    let copies = [(PAGES[0], 20), (PAGES[1], 21), (PAGES[2], 22)];
    device.copy(4, &copies);
    let pages = [20, 21, 22, 23];
    let row = Row::new(&family.prompt[40..48], 40, &pages);
    let copied = device.step(prefill(32, 6, Head::Each), &[row]);
    let difference = greatest_difference(&copied, &entries[40..48]);
    assert!(difference < 2e-2, "{difference}");
}

#[test]
fn an_embedding_is_the_state_that_the_head_takes() {
    let family = named("llama3");
    let Some(mut device) = opened(&family, form()) else {
        return;
    };
    let model = family.model(false);
    let tokens = &family.prompt[..16];
    let state = device.floats(
        prefill(32, 0, Head::Embedding),
        &[Row::new(tokens, 0, &PAGES)],
    );
    let logits = crate::upload::multiplied_by_head(&model.path, &state);
    let (_, golden) = (family.logits.iter())
        .find(|(place, _)| *place == 15)
        .expect("a golden place");
    for (logit, golden) in logits.iter().zip(golden) {
        assert!((logit - golden).abs() < 1e-3);
    }
}
