//! Packed steps are run on a device of plain Rust that keeps tokens in place of keys and values: it
//! reads every sequence back through the pages, and its answers are those of
//! [`engine::Scripted::model`].

use engine::{Candidates, PageCopy, Profile, Row, Scripted, TokenMask};
use proptest::prelude::*;

use super::*;
use crate::form::tests::{decoder, form};
use crate::layout::Ints;

const VOCABULARY: u32 = 70;
const PAGE: u32 = 4;
const PAGES: u32 = 64;
const CANDIDATES: u32 = 6;
const RANKS: u32 = 2;

fn packer(buckets: &[Bucket]) -> Packer {
    let mut decoder = decoder(4, 2);
    decoder.vocabulary = VOCABULARY;
    let form = Form {
        ranks: RANKS,
        page_tokens: PAGE,
        pages: PAGES + 1,
        candidates: CANDIDATES,
        ..form()
    };
    Packer::new(&decoder, &form, buckets).unwrap()
}

fn bucket(rows: u32, tokens: u32, pages: u32, head: Head) -> Bucket {
    Bucket::Step {
        rows,
        tokens,
        pages,
        head,
    }
}

fn last(rows: u32, tokens: u32, pages: u32) -> Bucket {
    bucket(rows, tokens, pages, Head::Last)
}

/// What a place of the cache holds: a position and its token.
type Held = Option<(u32, TokenId)>;

/// A device that runs buckets on tokens.
struct Device {
    buckets: Vec<Bucket>,
    cache: Vec<Held>,
}

impl Device {
    fn new(buckets: &[Bucket]) -> Self {
        Self {
            buckets: buckets.to_vec(),
            cache: vec![None; ((PAGES + 1) * PAGE) as usize],
        }
    }

    /// Puts the history of a sequence on the engine's pages.
    fn put(&mut self, history: &[TokenId], pages: &[PageId]) {
        for (at, token) in (0..).zip(history) {
            let place = (pages[(at / PAGE) as usize].0 + 1) * PAGE + at % PAGE;
            self.cache[place as usize] = Some((at, *token));
        }
    }

    fn run(&mut self, packed: &Packed) -> Vec<Vec<f32>> {
        let launches = packed.launches();
        launches
            .map(|launch| match self.buckets[launch.bucket] {
                Bucket::Copy { .. } => self.copy(&launch),
                Bucket::Step { .. } => self.step(&launch),
            })
            .collect()
    }

    fn copy(&mut self, launch: &Launch<'_>) -> Vec<f32> {
        let places = Ints::of(self.buckets[launch.bucket]);
        let before = self.cache.clone();
        let page = |page: i32| (page.cast_unsigned() * PAGE) as usize;
        for (from, to) in places.tables.zip(places.slots) {
            let (from, to) = (page(launch.ints[from]), page(launch.ints[to]));
            let from = &before[from..][..PAGE as usize];
            self.cache[to..][..PAGE as usize].copy_from_slice(from);
        }
        Vec::new()
    }

    fn step(&mut self, launch: &Launch<'_>) -> Vec<f32> {
        let Bucket::Step {
            rows,
            tokens,
            pages,
            head,
        } = self.buckets[launch.bucket]
        else {
            unreachable!("it is a step");
        };
        let places = Ints::of(self.buckets[launch.bucket]);
        let of = |range: &std::ops::Range<usize>, row: u32, width: u32| {
            let row = &launch.ints[range.clone()][(row * width) as usize..][..width as usize];
            let row = row.iter().map(|int| int.cast_unsigned());
            row.collect::<Vec<_>>()
        };
        let mut written = std::collections::HashSet::new();
        let mut pads = Vec::new();
        for row in 0..rows {
            let (start, count) = (
                of(&places.starts, row, 1)[0],
                of(&places.lengths, row, 1)[0],
            );
            assert!((1..=tokens).contains(&count));
            let brought = of(&places.tokens, row, tokens);
            for (at, slot) in (0..).zip(of(&places.slots, row, tokens)) {
                assert_ne!(slot, 0, "nobody writes the first place of the null page");
                if slot < PAGE {
                    pads.push(slot);
                    continue;
                }
                assert!(at < count, "padding is written to page {}", slot / PAGE);
                assert!(written.insert(slot), "place {slot} is written twice");
                let token = TokenId(brought[at as usize]);
                self.cache[slot as usize] = Some((start + at, token));
            }
        }
        for (at, pad) in (0..).zip(&pads) {
            assert_eq!(*pad, 1 + at % (PAGE - 1), "padding takes turns");
        }
        let masks = self.masks(launch);
        let mut out = Vec::new();
        for row in 0..rows {
            let (start, count) = (
                of(&places.starts, row, 1)[0],
                of(&places.lengths, row, 1)[0],
            );
            let table = of(&places.tables, row, pages);
            let padded = of(&places.slots, row, tokens)[0] < PAGE;
            let mut read = match padded {
                true => Vec::new(),
                false => self.read(&table, start),
            };
            let brought = of(&places.tokens, row, tokens);
            for at in 0..tokens {
                let token = if at < count { brought[at as usize] } else { 0 };
                read.push(TokenId(token));
                if head == Head::Each || at + 1 == count {
                    let entry = if head == Head::Each {
                        row * tokens + at
                    } else {
                        row
                    };
                    let target = launch.ints[places.targets.start + entry as usize].cast_unsigned();
                    out.extend(entry_of(&read, &masks[entry as usize], target));
                }
            }
        }
        out
    }

    fn read(&self, table: &[u32], end: u32) -> Vec<TokenId> {
        let positions = 0..end;
        positions
            .map(|at| {
                let place = table[(at / PAGE) as usize] * PAGE + at % PAGE;
                let (held, token) =
                    self.cache[place as usize].expect("a position that was written");
                assert_eq!(held, at);
                token
            })
            .collect()
    }

    /// The masks of all entries, put together from all ranks.
    fn masks(&self, launch: &Launch<'_>) -> Vec<TokenMask> {
        let entries = self.buckets[launch.bucket].entries() as usize;
        let mut words = vec![Vec::new(); entries];
        for rank in 0..RANKS {
            let mut part = vec![7; 3];
            launch.write_masks(rank, &mut part);
            let own = part.chunks(part.len() / entries);
            (words.iter_mut().zip(own)).for_each(|(words, own)| words.extend_from_slice(own));
        }
        let bits = |words: &Vec<u32>| {
            let bits = 32 * u32::try_from(words.len()).unwrap();
            let set = |id: &u32| words[*id as usize / 32] >> (id % 32) & 1 == 1;
            let allowed: Vec<_> = (0..bits).filter(set).collect();
            assert!(allowed.iter().all(|id| *id < VOCABULARY));
            assert!(launch.is_masked || allowed.len() == VOCABULARY as usize);
            TokenMask::only(VOCABULARY, allowed.into_iter().map(TokenId))
        };
        words.iter().map(bits).collect()
    }
}

/// All tokens with their log-probabilities, best first.
fn ranked(logprobs: &[f32]) -> Vec<(u32, f32)> {
    let mut ranked: Vec<_> = (0..).zip(logprobs.iter().copied()).collect();
    ranked.sort_by(|one, other| other.1.total_cmp(&one.1).then(one.0.cmp(&other.0)));
    ranked
}

/// An entry of a module's output. What is forbidden is very unlikely.
fn entry_of(read: &[TokenId], mask: &TokenMask, target: u32) -> Vec<f32> {
    let (logprobs, normalizer) = Scripted::model(read, VOCABULARY, Some(mask));
    let finite = |logprob: f32| logprob.max(-1e30);
    let best = ranked(&logprobs);
    let best = &best[..CANDIDATES as usize];
    let ids = best.iter().map(|(id, _)| *id as f32);
    let likely = best.iter().map(|(_, logprob)| finite(*logprob));
    let rest = [normalizer, finite(logprobs[target as usize])];
    ids.chain(likely).chain(rest).collect()
}

/// A row to be: its sequence, of which the last `count` tokens are new.
#[derive(Clone, Debug)]
struct Ask {
    sequence: Vec<TokenId>,
    count: usize,
    wish: Wish,
    mask: Option<Vec<u32>>,
    /// Whether the page that it goes on writing is copied first.
    copied: bool,
}

#[derive(Clone, Copy, Debug)]
enum Wish {
    Nothing,
    Best(u32),
    Each(u32),
}

/// A step of these rows, and a device that knows what was before.
fn with_step(buckets: &[Bucket], asks: &[Ask], run: impl FnOnce(&Step<'_>, Device)) {
    let mut device = Device::new(buckets);
    let (mut tokens, mut pages, mut rows, mut copies) = (vec![], vec![], vec![], vec![]);
    let all_masks: Vec<_> = asks.iter().filter_map(|ask| ask.mask.clone()).collect();
    let all_masks: Vec<_> = all_masks
        .into_iter()
        .map(|allowed| TokenMask::only(VOCABULARY, allowed.into_iter().map(TokenId)))
        .collect();
    let mut masked = 0;
    // Pages in an order that nothing depends on; 17 has no factor in common with 64.
    let mut free = (0..PAGES).map(|page| PageId(page * 17 % PAGES));
    let len = |list: usize| u32::try_from(list).unwrap();
    for ask in asks {
        let before = ask.sequence.len() - ask.count;
        let needed = ask.sequence.len().div_ceil(PAGE as usize);
        let mut own: Vec<_> = free.by_ref().take(needed).collect();
        assert_eq!(own.len(), needed, "too few pages for the test");
        device.put(&ask.sequence[..before], &own);
        if ask.copied && before % PAGE as usize != 0 {
            let to = free.next().expect("a page");
            let from = std::mem::replace(&mut own[before / PAGE as usize], to);
            copies.push(PageCopy { from, to });
        }
        let (first, page) = (len(tokens.len()), len(pages.len()));
        tokens.extend_from_slice(&ask.sequence[before..]);
        tokens.push(TokenId(5));
        pages.extend(own);
        let count = len(ask.count);
        rows.push(Row {
            tokens: first..first + count,
            pages: page..len(pages.len()),
            position: len(before),
            mask: ask.mask.is_some().then_some(masked),
            want: match ask.wish {
                Wish::Nothing => Want::Nothing,
                Wish::Best(width) => Want::Candidates { width },
                Wish::Each(width) => Want::EachPosition {
                    width,
                    targets: first + 1..first + 1 + count,
                },
            },
        });
        masked += u32::from(ask.mask.is_some());
    }
    let step = Step {
        copies: &copies,
        tokens: &tokens,
        pages: &pages,
        masks: &all_masks.iter().collect::<Vec<_>>(),
        rows: &rows,
    };
    engine::Checker::default()
        .check(&step, &profile())
        .expect("a step that keeps its promises");
    run(&step, device);
}

fn profile() -> Profile {
    Profile {
        candidates: CANDIDATES,
        ..Scripted::profile_of(PAGES, PAGE, VOCABULARY)
    }
}

/// What the rows are to be answered: ids, log-probabilities, normalizer, target.
type Answered = (Vec<(u32, f32)>, f32, Option<f32>);

fn expected(asks: &[Ask]) -> Vec<Answered> {
    let answer = |ask: &Ask, end: usize, width: u32, target: Option<TokenId>| {
        let mask = ask.mask.iter().flatten().copied().map(TokenId);
        let mask = ask.mask.as_ref().map(|_| TokenMask::only(VOCABULARY, mask));
        let (logprobs, normalizer) =
            Scripted::model(&ask.sequence[..end], VOCABULARY, mask.as_ref());
        let mut best = ranked(&logprobs);
        best.truncate(width.min(CANDIDATES) as usize);
        best.retain(|(_, logprob)| logprob.is_finite());
        let target = target.map(|token| logprobs[token.0 as usize]);
        (best, normalizer, target)
    };
    let answers = asks.iter().flat_map(|ask| {
        let len = ask.sequence.len();
        match ask.wish {
            Wish::Nothing => Vec::new(),
            Wish::Best(width) => vec![answer(ask, len, width, None)],
            Wish::Each(width) => (len - ask.count + 1..=len)
                .map(|end| {
                    let next = ask.sequence.get(end).copied().unwrap_or(TokenId(5));
                    answer(ask, end, width, Some(next))
                })
                .collect(),
        }
    });
    answers.collect()
}

fn answered(out: &Candidates) -> Vec<Answered> {
    let entries = (0..out.len()).filter_map(|entry| out.entry(entry));
    entries
        .map(|entry| {
            let ids = entry.ids.iter().map(|id| id.0);
            let best = ids.zip(entry.logprobs.iter().copied()).collect();
            (best, entry.normalizer, entry.target)
        })
        .collect()
}

/// Packs, runs and unpacks these rows, and gives what was packed.
fn check(packer: &mut Packer, buckets: &[Bucket], asks: &[Ask]) -> Packed {
    let mut packed = Packed::default();
    // What is left of another step does not matter.
    with_step(buckets, &[ask(3, 2)], |step, _| {
        packer.pack(step, &mut packed).unwrap();
    });
    with_step(buckets, asks, |step, mut device| {
        packer.pack(step, &mut packed).unwrap();
        let outputs = device.run(&packed);
        let mut out = Candidates::default();
        packed.unpack(|launch| &outputs[launch], &mut out).unwrap();
        assert_eq!(answered(&out), expected(asks));
        let tokens: u64 = step.rows.iter().map(|row| row.tokens.len() as u64).sum();
        assert_eq!(packed.load().tokens, tokens);
    });
    packed
}

/// A row that brings the last `count` of `len` tokens and asks for the best.
fn ask(len: u32, count: usize) -> Ask {
    Ask {
        sequence: (0..len)
            .map(|at| TokenId((at * 31 + len) % VOCABULARY))
            .collect(),
        count,
        wish: Wish::Best(2),
        mask: None,
        copied: false,
    }
}

/// The names of what is launched.
fn names(packed: &Packed, buckets: &[Bucket]) -> Vec<String> {
    let launches = packed.launches();
    launches
        .map(|launch| buckets[launch.bucket].name())
        .collect()
}

fn launched(buckets: &[Bucket], asks: &[Ask]) -> Vec<String> {
    names(&check(&mut packer(buckets), buckets, asks), buckets)
}

fn any_ask() -> impl Strategy<Value = Ask> {
    let wish = prop_oneof![
        Just(Wish::Nothing),
        (1..9_u32).prop_map(Wish::Best),
        (1..9_u32).prop_map(Wish::Each),
    ];
    let count = prop_oneof![Just(1), 1..14_usize];
    let mask = proptest::option::weighted(0.3, proptest::collection::vec(0..VOCABULARY, 1..5));
    let before = proptest::collection::vec((0..VOCABULARY).prop_map(TokenId), 0..17);
    let new = proptest::collection::vec((0..VOCABULARY).prop_map(TokenId), 14);
    (before, new, count, wish, mask, any::<bool>()).prop_map(
        |(before, new, count, wish, mask, copied)| Ask {
            sequence: [&before[..], &new[..count]].concat(),
            count,
            wish,
            mask,
            copied,
        },
    )
}

/// Buckets that hold whatever [`any_ask`] gives, and some more.
fn any_buckets() -> impl Strategy<Value = Vec<Bucket>> {
    let head = prop_oneof![Just(Head::Last), Just(Head::Each), Just(Head::Embedding)];
    let more = (1..4_u32, 1..20_u32, 0..9_u32, head)
        .prop_map(|(rows, tokens, pages, head)| bucket(rows, tokens, pages, head));
    let more = proptest::collection::vec(more, 0..6);
    let enough = (1..4_u32, 1..9_u32, 1..9_u32, 1..4_u32).prop_map(|(rows, chunk, each, pairs)| {
        vec![
            last(rows, 1, 8),
            last(1, chunk, 8),
            bucket(1, each, 8, Head::Each),
            Bucket::Copy { pairs },
        ]
    });
    (enough, more).prop_map(|(enough, more)| [more, enough].concat())
}

proptest! {
    #[test]
    fn rows_are_answered_as_if_nothing_was_cut_or_padded(
        buckets in any_buckets(),
        asks in proptest::collection::vec(any_ask(), 0..6),
    ) {
        check(&mut packer(&buckets), &buckets, &asks);
    }
}

#[test]
fn a_warm_packer_takes_no_more_memory() {
    let buckets = [last(4, 1, 8), last(1, 8, 8), bucket(1, 4, 8, Head::Each)];
    let each = Ask {
        wish: Wish::Each(3),
        ..ask(12, 10)
    };
    let asks = [ask(5, 1), ask(30, 20), each, ask(9, 1)];
    let (mut packer, mut packed) = (packer(&buckets), Packed::default());
    with_step(&buckets, &asks, |step, _| {
        packer.pack(step, &mut packed).unwrap();
        let memory = |packer: &Packer, packed: &Packed| {
            let waiting = &packer.waiting;
            let lists = [
                &waiting.chunks,
                &waiting.each,
                &waiting.decode,
                &packer.chosen,
            ];
            let lists = lists.map(|list| (list.as_ptr().addr(), list.capacity()));
            let ints = (packed.ints.as_ptr().addr(), packed.ints.capacity());
            let answers = (packed.answers.as_ptr().addr(), packed.answers.capacity());
            (lists, ints, answers)
        };
        let warm = memory(&packer, &packed);
        for _ in 0..3 {
            packer.pack(step, &mut packed).unwrap();
            assert_eq!(memory(&packer, &packed), warm);
        }
    });
}

#[test]
fn decode_rows_go_together_in_their_order() {
    let buckets = [last(1, 1, 8), last(4, 1, 2), last(4, 1, 8), last(8, 1, 8)];
    let few = [ask(3, 1), ask(9, 1), ask(5, 1)];
    assert_eq!(launched(&buckets, &few), ["decode-4x2"]);
    let packed = check(&mut packer(&buckets), &buckets, &few);
    let launch = packed.launches().next().unwrap();
    let places = Ints::of(buckets[1]);
    assert_eq!(launch.ints[places.starts], [2, 8, 4, 0]);
    assert_eq!(launch.ints[places.lengths], [1; 4]);
    assert_eq!(
        packed.load(),
        Load {
            tokens: 3,
            padded_tokens: 1,
            pages: 4,
            padded_pages: 4,
        }
    );
    assert_eq!(launched(&buckets, &few[..1]), ["decode-1x8"]);
    assert_eq!(launched(&buckets, &[ask(3, 1), ask(10, 1)]), ["decode-4x8"]);
    let many = vec![ask(6, 1); 8];
    assert_eq!(launched(&buckets, &many), ["decode-8x8"]);
}

#[test]
fn decode_rows_that_do_not_fit_go_the_hungriest_first() {
    let buckets = [last(2, 1, 8), last(4, 1, 2)];
    let asks = [2, 30, 5, 3, 20, 4, 7].map(|len| ask(len, 1));
    assert_eq!(
        launched(&buckets, &asks),
        ["decode-2x8", "decode-4x2", "decode-4x2"]
    );
    let packed = check(&mut packer(&buckets), &buckets, &asks);
    let starts = packed.launches().map(|launch| {
        let starts = Ints::of(buckets[launch.bucket]).starts;
        launch.ints[starts].to_vec()
    });
    assert_eq!(
        starts.collect::<Vec<_>>(),
        [vec![29, 19], vec![1, 4, 2, 6], vec![3, 0, 0, 0]]
    );
}

#[test]
fn a_chunk_goes_whole_where_it_fits_and_in_pieces_where_it_does_not() {
    let buckets = [
        last(1, 1, 16),
        last(1, 8, 0),
        last(1, 8, 16),
        last(1, 16, 16),
    ];
    assert_eq!(launched(&buckets, &[ask(8, 8)]), ["prefill-1x8x0"]);
    assert_eq!(launched(&buckets, &[ask(12, 8)]), ["prefill-1x8x16"]);
    assert_eq!(launched(&buckets, &[ask(17, 13)]), ["prefill-1x16x16"]);
    assert_eq!(
        launched(&buckets, &[ask(40, 40)]),
        ["prefill-1x16x16", "prefill-1x16x16", "prefill-1x8x16"]
    );
    let packed = check(&mut packer(&buckets), &buckets, &[ask(40, 40)]);
    let answers: Vec<_> = packed.launches().map(|launch| launch.answers).collect();
    assert_eq!(answers, [0, 0, 1], "only the last piece answers");
}

#[test]
fn chunks_go_together_where_a_bucket_has_rows_for_them() {
    let buckets = [last(1, 8, 4), last(2, 8, 4)];
    let asks = [ask(8, 8), ask(7, 7), ask(6, 6)];
    assert_eq!(
        launched(&buckets, &asks),
        ["prefill-2x8x4", "prefill-1x8x4"]
    );
}

#[test]
fn a_row_that_asks_for_each_position_goes_in_pieces() {
    let buckets = [last(4, 1, 8), bucket(1, 4, 8, Head::Each)];
    let each = |len, count| Ask {
        wish: Wish::Each(3),
        ..ask(len, count)
    };
    let asks = [ask(5, 1), each(12, 10), each(3, 1), ask(9, 1)];
    let each = "prefill-1x4x8-each";
    let expected = [each, each, each, each, "decode-4x8"];
    assert_eq!(launched(&buckets, &asks), expected);
}

#[test]
fn copies_come_first_in_as_many_launches_as_they_need() {
    let buckets = [
        last(4, 1, 8),
        Bucket::Copy { pairs: 1 },
        Bucket::Copy { pairs: 2 },
    ];
    let copied = |len| Ask {
        copied: true,
        ..ask(len, 1)
    };
    let asks = [copied(3), copied(7), copied(10)];
    assert_eq!(
        launched(&buckets, &asks),
        ["copy-2", "copy-1", "decode-4x8"]
    );
}

#[test]
fn only_a_launch_with_a_masked_row_is_masked() {
    let buckets = [last(2, 1, 8), last(1, 8, 8)];
    let masked = Ask {
        mask: Some(vec![3, 40, 69]),
        ..ask(5, 1)
    };
    let packed = check(
        &mut packer(&buckets),
        &buckets,
        &[ask(4, 4), ask(4, 1), masked],
    );
    let masked: Vec<_> = packed.launches().map(|launch| launch.is_masked).collect();
    assert_eq!(masked, [false, true]);
    let launch = packed.launches().last().unwrap();
    let mut words = Vec::new();
    launch.write_masks(0, &mut words);
    assert_eq!(words, [u32::MAX, u32::MAX, 1 << 3, 1 << 8]);
    launch.write_masks(1, &mut words);
    assert_eq!(words, [0x3f, 0, 1 << 5, 0]);
}

#[test]
fn a_row_without_a_bucket_is_refused_and_nothing_is_launched() {
    let refused = |buckets: &[Bucket], ask: Ask| {
        let mut packed = Packed::default();
        let mut refusal = String::new();
        with_step(buckets, &[self::ask(2, 2), ask], |step, _| {
            let error = packer(buckets).pack(step, &mut packed).unwrap_err();
            refusal = error.to_string();
        });
        assert_eq!(packed.launches().len(), 0);
        refusal
    };
    let buckets = [last(1, 1, 2), last(1, 8, 1)];
    let long = refused(&buckets, ask(12, 1));
    assert!(long.contains("row 1 reads 3 KV pages"), "{long}");
    assert!(long.contains("takes 2"), "{long}");
    let each = Ask {
        wish: Wish::Each(1),
        ..ask(2, 1)
    };
    let each = refused(&buckets, each);
    assert!(each.contains("row 1 asks for candidates at each"), "{each}");
    let copied = Ask {
        copied: true,
        ..ask(3, 1)
    };
    let copied = refused(&buckets, copied);
    assert!(copied.contains("1 KV pages are to be copied"), "{copied}");
}

/// What comes of a device's output for one row that asks for `width`; the mask allows 3 and 40.
fn unpacked(width: u32, masked: bool, output: &[f32]) -> Result<Vec<Answered>, String> {
    let buckets = [last(1, 1, 8)];
    let mut result = Ok(Vec::new());
    let asked = Ask {
        wish: Wish::Best(width),
        mask: masked.then(|| vec![3, 40]),
        ..ask(5, 1)
    };
    with_step(&buckets, &[asked], |step, _| {
        let mut packed = Packed::default();
        packer(&buckets).pack(step, &mut packed).unwrap();
        let mut out = Candidates::default();
        out.push([(TokenId(1), 0.0)], 0.0, None);
        let unpacked = packed.unpack(|_| output, &mut out);
        assert!(unpacked.is_ok() || out.is_empty());
        result = (unpacked.map(|()| answered(&out))).map_err(|error| error.to_string());
    });
    result
}

#[test]
fn an_entry_is_cut_to_what_was_asked_and_to_what_is_allowed() {
    let ids = [40.0, 3.0, 9.0, 9.0, 0.0, 127.0];
    let logprobs = [-0.5, -1.0, -1.5, -1e30, -2e30, f32::NEG_INFINITY];
    let output = [&ids[..], &logprobs[..], &[2.0, 0.0]].concat();
    let best = vec![(40, -0.5), (3, -1.0), (9, -1.5)];
    let entry = |best: &[(u32, f32)]| Ok(vec![(best.to_vec(), 2.0, None)]);
    assert_eq!(unpacked(1, false, &output), entry(&best[..1]));
    assert_eq!(unpacked(2, false, &output), entry(&best[..2]));
    assert_eq!(unpacked(u32::MAX, false, &output), entry(&best));
    assert_eq!(unpacked(u32::MAX, true, &output), entry(&best[..2]));
}

#[test]
fn what_is_no_answer_is_a_fault() {
    let ids = [40.0, 3.0, 9.0, 7.0, 0.0, 1.0];
    let logprobs = [-0.5, -1.0, -1.5, -2.0, -3.0, -4.0];
    let good = [&ids[..], &logprobs[..], &[2.0, 0.0]].concat();
    let refused = |at: usize, number: f32, why: &str| {
        let mut output = good.clone();
        output[at] = number;
        let error = unpacked(3, false, &output).unwrap_err();
        assert!(error.contains(why), "{error}");
    };
    assert!(unpacked(3, false, &good).is_ok());
    refused(12, f32::NAN, "NaN as the logarithm of a sum");
    refused(12, f32::INFINITY, "inf as the logarithm of a sum");
    refused(7, f32::NAN, "NaN as a log-probability");
    refused(6, 1.0, "1 as a log-probability");
    refused(1, 3.5, "3.5 as a token");
    refused(1, -1.0, "-1 as a token");
    refused(1, f32::NAN, "NaN as a token");
    refused(1, 40.0, "two are the same");
    refused(6, -1.2, "not in order");
    let zeros = unpacked(1, false, &[0.0; 14]).unwrap_err();
    assert!(zeros.contains("two are the same"), "{zeros}");
    let short = unpacked(1, false, &good[..13]).unwrap_err();
    assert!(short.contains("gave 13 numbers"), "{short}");
    let mut never = good.clone();
    never[6..12].fill(-1e30);
    let never = unpacked(1, false, &never).unwrap_err();
    assert!(never.contains("none is allowed"), "{never}");
}
