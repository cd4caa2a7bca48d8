//! Every slot of every tiny family is held to its definition, number by number: where each number
//! of a rank's matrix comes from is said here once more, in the plainest way.

use std::convert::Infallible;
use std::fs;

use graph::narrow::{e4m3, from_e4m3};
use graph::{Activations, Bucket, Element, Head, KvFormat, LayerSlot, Layout, Port, WeightFormat};
use model::{Dtype, LayerRole};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

const FAMILIES: [&str; 7] = [
    include_str!("../../../tests/golden/families/llama-biased.json"),
    include_str!("../../../tests/golden/families/llama-yarn.json"),
    include_str!("../../../tests/golden/families/qwen2.json"),
    include_str!("../../../tests/golden/families/qwen3.json"),
    include_str!("../../../tests/golden/families/smollm2.json"),
    include_str!("../../../tests/golden/families/mixtral.json"),
    include_str!("../../../tests/golden/families/qwen3-moe.json"),
];

/// A tiny model on disk, and its numbers.
struct Tiny {
    _folder: TempDir,
    decoder: Decoder,
    weights: Weights,
    numbers: HashMap<String, Vec<f32>>,
}

/// The numbers of a tensor: see `tests/golden/README.md`. They are numbers of BF16 and F16, unless
/// they are blurred.
fn numbers_of(name: &str, count: usize, blur: f32) -> Vec<f32> {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut state = seed;
    let next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let [.., top] = (mixed ^ (mixed >> 31)).to_le_bytes();
        let whole = f32::from(i16::from(top) - 128);
        match name {
            _ if name.contains("norm") => (1.0 + (whole / 4.0).floor() / 128.0) * blur,
            _ if name.contains("embed") => whole / 256.0 * blur,
            _ => whole / 512.0 * blur,
        }
    };
    std::iter::repeat_with(next).take(count).collect()
}

impl Tiny {
    /// A family's model, stored as `dtype`.
    fn new(golden: &str, dtype: Dtype, blur: f32) -> Self {
        let golden: Value = serde_json::from_str(golden).unwrap();
        let decoder = Decoder::parse(golden["config"].to_string().as_bytes()).unwrap();
        let mut header = serde_json::Map::new();
        let (mut bytes, mut numbers) = (Vec::new(), HashMap::new());
        for (name, shape) in golden["tensors"].as_object().unwrap() {
            let sizes = shape
                .as_array()
                .unwrap()
                .iter()
                .map(|size| size.as_u64().unwrap());
            let count = usize::try_from(sizes.product::<u64>()).unwrap();
            let tensor = numbers_of(name, count, blur);
            let start = bytes.len();
            for number in &tensor {
                match dtype {
                    Dtype::F32 => bytes.extend(number.to_le_bytes()),
                    Dtype::F16 => bytes.extend(half::f16::from_f32(*number).to_le_bytes()),
                    Dtype::Bf16 => bytes.extend(half::bf16::from_f32(*number).to_le_bytes()),
                }
            }
            let dtype = match dtype {
                Dtype::F32 => "F32",
                Dtype::F16 => "F16",
                Dtype::Bf16 => "BF16",
            };
            let place = [start, bytes.len()];
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": place});
            header.insert(name.clone(), entry);
            numbers.insert(name.clone(), tensor);
        }
        let header = Value::Object(header).to_string().into_bytes();
        let file = [&(header.len() as u64).to_le_bytes()[..], &header, &bytes].concat();
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("model.safetensors"), file).unwrap();
        let weights = Weights::open(folder.path(), &decoder).unwrap();
        Self {
            _folder: folder,
            decoder,
            weights,
            numbers,
        }
    }

    /// The number at `[row, column]` of a tensor; a vector has one column.
    fn at(&self, role: Role, row: u32, column: u32) -> f32 {
        let stored = match role {
            Role::Head if self.decoder.tied_head => Role::Embedding,
            _ => role,
        };
        let name = stored
            .names()
            .find(|name| self.numbers.contains_key(name))
            .unwrap();
        let width = self.weights.shape(role).1.get(1).copied().unwrap_or(1);
        self.numbers[&name][row as usize * width + column as usize]
    }

    /// The number at `[row, column]` of what a rank has of a slot; a vector is a column.
    fn expected(&self, form: &Form, slot: Slot, rank: u32, row: u32, column: u32) -> f32 {
        let decoder = &self.decoder;
        let tokens = Cut::of(decoder, form.ranks).unwrap().vocabulary;
        let token = |local: u32| Some(rank * tokens + local).filter(|at| *at < decoder.vocabulary);
        match slot {
            Slot::Embedding => {
                token(row).map_or(0.0, |token| self.at(Role::Embedding, token, column))
            }
            Slot::FinalNorm => self.at(Role::FinalNorm, row, 0),
            Slot::Head => token(column).map_or(0.0, |token| self.at(Role::Head, token, row)),
            Slot::Layer(layer, slot) => {
                let at = |role, row, column| self.at(Role::Layer(layer, role), row, column);
                self.expected_of_layer(form.ranks, slot, rank, [row, column], at)
            }
        }
    }

    fn expected_of_layer(
        &self,
        ranks: u32,
        slot: LayerSlot,
        rank: u32,
        [row, column]: [u32; 2],
        at: impl Fn(LayerRole, u32, u32) -> f32,
    ) -> f32 {
        use LayerRole::*;
        let attention = &self.decoder.attention;
        let size = self.decoder.mlp.size();
        let own = size.div_ceil(ranks);
        let (heads, head) = (attention.heads / ranks, attention.head_size);
        let kv_heads = (attention.kv_heads / ranks).max(1);
        // Which query, key or value head a column is of, and the row of the checkpoint.
        let input = |column: u32| {
            let (local, within) = (column / head, column % head);
            let first = if attention.kv_heads >= ranks {
                rank * kv_heads
            } else {
                rank / (ranks / attention.kv_heads)
            };
            if local < heads {
                (0, (rank * heads + local) * head + within)
            } else if local < heads + kv_heads {
                (1, (first + local - heads) * head + within)
            } else {
                (2, (first + local - heads - kv_heads) * head + within)
            }
        };
        // Which of gate and up, and the row of the checkpoint unless it is padding.
        let inner = |column: u32| {
            let row = rank * own + column % own;
            (column >= own, (row < size).then_some(row))
        };
        let on_first = |role| if rank == 0 { at(role, row, 0) } else { 0.0 };
        match slot {
            LayerSlot::AttentionNorm => at(AttentionNorm, row, 0),
            LayerSlot::MlpNorm => at(MlpNorm, row, 0),
            LayerSlot::QueryNorm => at(QueryNorm, row, 0),
            LayerSlot::KeyNorm => at(KeyNorm, row, 0),
            LayerSlot::Qkv => {
                let (which, out) = input(column);
                at([Query, Key, Value][which], out, row)
            }
            LayerSlot::QkvBias => {
                let (which, out) = input(row);
                at([QueryBias, KeyBias, ValueBias][which], out, 0)
            }
            LayerSlot::Output => at(Output, column, rank * heads * head + row),
            LayerSlot::OutputBias => on_first(OutputBias),
            LayerSlot::GateUp => match inner(column) {
                (_, None) => 0.0,
                (false, Some(out)) => at(Gate, out, row),
                (true, Some(out)) => at(Up, out, row),
            },
            LayerSlot::GateUpBias => match inner(row) {
                (_, None) => 0.0,
                (false, Some(out)) => at(GateBias, out, 0),
                (true, Some(out)) => at(UpBias, out, 0),
            },
            LayerSlot::Down => match rank * own + row {
                inner if inner < size => at(Down, column, inner),
                _ => 0.0,
            },
            LayerSlot::DownBias => on_first(DownBias),
            LayerSlot::Router => at(Router, column, row),
            // Rows of all experts are one below the other.
            LayerSlot::ExpertsGateUp => {
                let (expert, row) = (row / self.decoder.hidden, row % self.decoder.hidden);
                match inner(column) {
                    (_, None) => 0.0,
                    (false, Some(out)) => at(ExpertGate(expert), out, row),
                    (true, Some(out)) => at(ExpertUp(expert), out, row),
                }
            }
            LayerSlot::ExpertsDown => {
                let (expert, row) = (row / own, row % own);
                match rank * own + row {
                    inner if inner < size => at(ExpertDown(expert), column, inner),
                    _ => 0.0,
                }
            }
        }
    }

    /// A slot's scales: the largest magnitude of each column of each of its matrices over the format's
    /// largest number.
    fn scales(&self, form: &Form, slot: Slot, rank: u32, port: &Port) -> Vec<f32> {
        let [all, columns] = sizes(port);
        let rows = all / experts(port);
        #[expect(clippy::cast_precision_loss, reason = "it is 240 or 448")]
        let most = match form.weights {
            WeightFormat::Bf16 => return Vec::new(),
            WeightFormat::Fp8 => form.fp8_max as f32,
            WeightFormat::Int8 => 127.0,
        };
        let scale = |expert, column| {
            let numbers = (expert * rows..(expert + 1) * rows)
                .map(|row| self.expected(form, slot, rank, row, column).abs());
            (numbers.fold(0.0, f32::max) / most).max(1e-5)
        };
        let scales =
            (0..experts(port)).flat_map(|expert| (0..columns).map(move |column| (expert, column)));
        scales
            .map(|(expert, column)| scale(expert, column))
            .collect()
    }
}

fn form(ranks: u32, weights: WeightFormat, fp8_max: u32) -> Form {
    Form {
        ranks,
        weights,
        activations: Activations::Bf16,
        kv: KvFormat::Bf16,
        fp8_max,
        page_tokens: 16,
        pages: 9,
        context: 128,
        candidates: 16,
    }
}

/// What a rank holds as `content`, put together; pieces must follow each other and be small.
fn written(source: &Source<'_>, writer: &mut Writer<'_>, content: Content) -> Vec<u8> {
    let mut bytes = Vec::new();
    let count = writer.write(content, |at, piece| {
        assert_eq!(at, bytes.len() as u64);
        assert!(piece.len() <= source.piece);
        bytes.extend_from_slice(piece);
        Ok::<_, Infallible>(())
    });
    assert_eq!(count.unwrap(), bytes.len() as u64);
    bytes
}

/// The inputs of a module that are written once.
fn ports(tiny: &Tiny, form: &Form) -> Vec<Port> {
    let bucket = Bucket::Step {
        rows: 1,
        tokens: 1,
        pages: 8,
        head: Head::Last,
    };
    let layout = Layout::of(&tiny.decoder, form, bucket).unwrap();
    layout.inputs
}

/// Rows, of all experts one below the other, and columns.
fn sizes(port: &Port) -> [u32; 2] {
    match port.shape[..] {
        [rows] => [rows, 1],
        [rows, columns] => [rows, columns],
        [experts, rows, columns] => [experts * rows, columns],
        _ => panic!("{port:?}"),
    }
}

/// Matrices of a port.
fn experts(port: &Port) -> u32 {
    match port.shape[..] {
        [experts, _, _] => experts,
        _ => 1,
    }
}

/// Checks all that one rank holds.
fn check_rank(tiny: &Tiny, form: &Form, source: &Source<'_>, rank: u32) {
    let mut writer = source.writer(rank);
    for port in ports(tiny, form) {
        let bytes = written(source, &mut writer, port.content);
        let what = format!("{} of rank {rank} of {form:?}", port.name);
        let [rows, columns] = sizes(&port);
        let numbers = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        let expected: Vec<u8> = match port.content {
            Content::Weight(slot) => {
                let scales = match port.element {
                    Element::F8e4m3fn | Element::S8 => tiny.scales(form, slot, rank, &port),
                    _ => Vec::new(),
                };
                let number = |(row, column)| {
                    let number = tiny.expected(form, slot, rank, row, column);
                    let expert = row / (rows / experts(&port));
                    let scale = scales.get((expert * columns + column) as usize).copied();
                    stored(port.element, number, scale.unwrap_or(1.0), form.fp8_max)
                };
                numbers.flat_map(number).collect()
            }
            Content::Scale(slot) => {
                let matrix = Content::Weight(slot);
                let ports = ports(tiny, form);
                let matrix = ports.iter().find(|port| port.content == matrix).unwrap();
                let scales = tiny.scales(form, slot, rank, matrix);
                scales.into_iter().flat_map(f32::to_le_bytes).collect()
            }
            Content::Rank => rank.to_le_bytes().to_vec(),
            Content::RopeCos | Content::RopeSin => {
                let number = |(position, pair)| rope(tiny, port.content, position, pair);
                numbers.map(number).flat_map(f32::to_le_bytes).collect()
            }
            _ => {
                assert!(bytes.is_empty(), "{what} is no constant");
                continue;
            }
        };
        assert_eq!(bytes.len() as u64, port.bytes(), "{what}");
        assert!(bytes == expected, "{what} differs");
    }
}

/// A number's bytes.
fn stored(element: Element, number: f32, scale: f32, fp8_max: u32) -> Vec<u8> {
    match element {
        Element::F32 => number.to_le_bytes().to_vec(),
        Element::Bf16 => half::bf16::from_f32(number).to_le_bytes().to_vec(),
        #[expect(clippy::cast_precision_loss, reason = "it is 240 or 448")]
        Element::F8e4m3fn => vec![e4m3(number / scale, fp8_max as f32)],
        #[expect(clippy::cast_possible_truncation, reason = "it is 127 at most")]
        Element::S8 => vec![((number / scale).round_ties_even() as i8).cast_unsigned()],
        other => panic!("{other:?} is no weight"),
    }
}

#[expect(clippy::cast_precision_loss, reason = "positions are small")]
fn rope(tiny: &Tiny, content: Content, position: u32, pair: u32) -> f32 {
    let attention = &tiny.decoder.attention;
    let (frequencies, factor) = attention.rope.frequencies(attention.head_size);
    let angle = frequencies[pair as usize] * position as f32;
    match content {
        Content::RopeCos => angle.cos() * factor,
        _ => angle.sin() * factor,
    }
}

/// Checks all ranks that can share out the heads of a family, among some.
fn check(tiny: &Tiny, weights: WeightFormat, fp8_max: u32, piece: usize) {
    let mut checked = 0;
    for ranks in [1, 2, 3, 4] {
        let form = form(ranks, weights, fp8_max);
        let Ok(mut source) = Source::new(&tiny.decoder, &tiny.weights, &form) else {
            continue;
        };
        source.piece = piece;
        for rank in 0..ranks {
            check_rank(tiny, &form, &source, rank);
        }
        let unread = source
            .unread
            .values()
            .map(|unread| unread.load(Ordering::Relaxed));
        assert!(unread.sum::<u32>() == 0, "every rank has read every tensor");
        checked += 1;
    }
    assert!(checked >= 2);
}

#[test]
fn every_rank_holds_its_part_of_every_family_in_bf16() {
    for family in FAMILIES {
        let tiny = Tiny::new(family, Dtype::Bf16, 1.0);
        check(&tiny, WeightFormat::Bf16, 448, PIECE);
    }
}

#[test]
fn every_rank_holds_its_part_of_every_family_in_bytes() {
    for family in FAMILIES {
        let tiny = Tiny::new(family, Dtype::Bf16, 1.0);
        check(&tiny, WeightFormat::Fp8, 240, PIECE);
        check(&tiny, WeightFormat::Int8, 448, PIECE);
    }
}

#[test]
fn pieces_may_be_small() {
    for piece in [1100, 40_000] {
        let tiny = Tiny::new(FAMILIES[0], Dtype::Bf16, 1.0);
        check(&tiny, WeightFormat::Bf16, 448, piece);
        check(&tiny, WeightFormat::Fp8, 448, piece);
    }
}

#[test]
fn a_checkpoint_may_hold_other_numbers() {
    let f16 = Tiny::new(FAMILIES[0], Dtype::F16, 1.0);
    let f32 = Tiny::new(FAMILIES[2], Dtype::F32, 1.234_567);
    for weights in [WeightFormat::Bf16, WeightFormat::Fp8, WeightFormat::Int8] {
        check(&f16, weights, 240, PIECE);
        check(&f32, weights, 448, PIECE);
    }
}

#[test]
fn scales_may_be_asked_for_alone() {
    let slots = [LayerSlot::Down, LayerSlot::ExpertsDown];
    for (family, slot) in [FAMILIES[3], FAMILIES[6]].into_iter().zip(slots) {
        let tiny = Tiny::new(family, Dtype::Bf16, 1.0);
        let form = form(2, WeightFormat::Fp8, 240);
        let source = Source::new(&tiny.decoder, &tiny.weights, &form).unwrap();
        let scales = Content::Scale(Slot::Layer(1, slot));
        let weight = Content::Weight(Slot::Layer(1, slot));
        let alone = written(&source, &mut source.writer(1), scales);
        let mut writer = source.writer(1);
        let matrix = written(&source, &mut writer, weight);
        assert_eq!(written(&source, &mut writer, scales), alone);
        assert_eq!(written(&source, &mut writer, scales), alone, "and again");
        let again = written(&source, &mut writer, weight);
        assert!(matrix == again, "with scales that are known");
        let most = matrix.iter().map(|code| from_e4m3(*code).abs());
        assert_eq!(most.fold(0.0, f32::max), 240.0);
    }
}

#[test]
fn what_the_sink_says_ends_the_writing() {
    let tiny = Tiny::new(FAMILIES[0], Dtype::Bf16, 1.0);
    let form = form(1, WeightFormat::Bf16, 448);
    let mut source = Source::new(&tiny.decoder, &tiny.weights, &form).unwrap();
    source.piece = 1024;
    let mut calls = 0;
    let stopped = source.writer(0).write(Content::Weight(Slot::Head), |_, _| {
        calls += 1;
        if calls == 2 { Err("full") } else { Ok(()) }
    });
    assert!(
        matches!(stopped, Err(WriteError::Sink("full"))),
        "{stopped:?}"
    );
    assert_eq!(calls, 2);
}

#[test]
fn ranks_side_by_side_write_what_was_read_ahead() {
    let tiny = Tiny::new(FAMILIES[3], Dtype::Bf16, 1.0);
    let form = form(2, WeightFormat::Bf16, 448);
    let ports = ports(&tiny, &form);
    let mut source = Source::new(&tiny.decoder, &tiny.weights, &form).unwrap();
    source
        .read_ahead(ports.iter().map(|port| port.content))
        .unwrap();
    let source = &source;
    std::thread::scope(|scope| {
        for rank in 0..2 {
            let (tiny, form) = (&tiny, &form);
            scope.spawn(move || check_rank(tiny, form, source, rank));
        }
    });
    let progress = tiny.weights.progress();
    assert!(progress.total() > 0);
    assert_eq!(progress.read(), progress.total());
    // Whoever comes after one has given up gets nothing.
    source.give_up();
    let refused = source
        .writer(0)
        .write(Content::Weight(Slot::Head), |_, _| Ok::<_, ()>(()));
    assert!(matches!(refused, Err(WriteError::Read(_))), "{refused:?}");
}
