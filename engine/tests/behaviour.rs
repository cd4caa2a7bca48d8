//! What the engine promises, one promise a test, on the scripted device.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::Duration;

use engine::{
    Axis, Cause, Constraint, Delivery, Engine, Event, Fault, Finish, Limits, Moment, Penalties,
    Profile, Refused, Request, RequestId, Sampling, Script, Scripted, Stop, TokenId, TokenMask,
    Turn,
};

const VOCABULARY: u32 = 64;

fn request(prompt: std::ops::Range<u32>, max_tokens: u32) -> Request {
    Request {
        prompt: prompt.map(TokenId).collect(),
        choices: 1,
        sampling: Sampling {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            penalties: Penalties::NONE,
            bias: [].into(),
            seed: 0,
        },
        stop: Stop {
            tokens: [].into(),
            min_tokens: 0,
            max_tokens,
        },
        logprobs: None,
        prompt_logprobs: None,
        constraint: Constraint::Free,
        priority: 0,
        deadline: None,
        cache_salt: 0,
    }
}

fn limits() -> Limits {
    Limits {
        queued_requests: 100,
        queued_tokens: 10_000,
        running: 16,
        context: 256,
        step_tokens: 64,
        step_time: Duration::from_millis(10),
    }
}

fn profile() -> Profile {
    Scripted::profile_of(64, 4, VOCABULARY)
}

struct Bench {
    engine: Engine<Scripted>,
    now: Duration,
    out: Vec<Delivery>,
}

impl Bench {
    fn new(profile: Profile, limits: Limits, script: Script) -> Self {
        let device = Scripted::new(profile, script);
        Self {
            engine: Engine::new(device, limits, [1; 16]),
            now: Duration::ZERO,
            out: Vec::new(),
        }
    }

    fn plain() -> Self {
        Self::new(profile(), limits(), Script::default())
    }

    fn admit(&mut self, request: Request) -> RequestId {
        self.engine.admit(request, self.now).unwrap()
    }

    /// Turns after `millis`; what came of it.
    fn turn(&mut self, millis: u64) -> Vec<Delivery> {
        self.now += Duration::from_millis(millis);
        let mut out = Vec::new();
        self.engine.turn(self.now, &mut out).unwrap();
        self.engine.audit().unwrap();
        self.out.extend(out.iter().cloned());
        out
    }

    fn run(&mut self) {
        let mut out = Vec::new();
        while self.engine.turn(self.now, &mut out).unwrap() == Turn::Ran {
            self.engine.audit().unwrap();
        }
        self.out.extend(out);
    }

    fn finish(&self, request: RequestId, choice: u32) -> Option<&Finish> {
        self.out.iter().find_map(|delivery| match &delivery.event {
            Event::Finished(finish) if (delivery.request, delivery.choice) == (request, choice) => {
                Some(finish)
            }
            _ => None,
        })
    }

    fn tokens(&self, request: RequestId, choice: u32) -> Vec<TokenId> {
        let events = self.out.iter();
        let events = events.filter(|it| (it.request, it.choice) == (request, choice));
        events
            .filter_map(|delivery| match &delivery.event {
                Event::Token(scored) => Some(scored.token),
                _ => None,
            })
            .collect()
    }

    fn cached(&self, request: RequestId) -> Option<u32> {
        self.out.iter().find_map(|delivery| match delivery.event {
            Event::Started { cached_tokens } if delivery.request == request => Some(cached_tokens),
            _ => None,
        })
    }
}

/// The token most likely to follow.
fn greedy(tokens: &[TokenId]) -> TokenId {
    let (logprobs, _) = Scripted::model(tokens, VOCABULARY, None);
    let best = (0..VOCABULARY)
        .rev()
        .max_by(|one, other| logprobs[*one as usize].total_cmp(&logprobs[*other as usize]));
    TokenId(best.unwrap())
}

#[test]
fn a_prefix_is_computed_once_and_found_by_those_who_share_salt_and_tokens() {
    let mut bench = Bench::plain();
    let first = bench.admit(request(0..10, 6));
    bench.run();
    let same = bench.admit(request(0..10, 1));
    let longer = bench.admit(request(0..20, 1));
    let salted = bench.admit(Request {
        cache_salt: 1,
        ..request(0..10, 1)
    });
    let scored = bench.admit(Request {
        prompt_logprobs: Some(0),
        ..request(0..10, 1)
    });
    bench.run();
    let cached = [first, same, longer, salted, scored].map(|id| bench.cached(id).unwrap());
    assert_eq!(cached, [0, 8, 8, 0, 0]);
    let stats = bench.engine.stats();
    assert_eq!((stats.prefix_queries, stats.prefix_hits), (50, 16));
}

#[test]
fn pages_filled_by_output_are_cached_and_the_last_prompt_token_is_always_computed() {
    let mut bench = Bench::plain();
    let first = bench.admit(request(0..6, 7));
    bench.run();
    let mut all = request(0..6, 1).prompt.to_vec();
    all.extend(bench.tokens(first, 0));
    // 13 tokens, the last never computed: three pages of four are known.
    for (take, found) in [(13, 12), (12, 8)] {
        let next = bench.admit(Request {
            prompt: all[..take].into(),
            ..request(0..1, 1)
        });
        bench.run();
        assert_eq!(bench.cached(next), Some(found));
    }
}

#[test]
fn choices_share_the_prompt_and_are_each_as_if_alone() {
    let mut bench = Bench::plain();
    let sampled = |choices| {
        let mut sampled = request(0..10, 12);
        sampled.choices = choices;
        sampled.sampling.temperature = 1.5;
        sampled
    };
    let many = bench.admit(sampled(4));
    bench.run();
    assert_eq!(bench.engine.stats().prefill_tokens, 10);
    assert_ne!(bench.tokens(many, 0), bench.tokens(many, 1));
    let one = bench.admit(sampled(1));
    bench.run();
    assert_eq!(bench.tokens(many, 0), bench.tokens(one, 0));
    assert_eq!(bench.engine.stats().decode_tokens, 12 * 5);
}

#[test]
fn choices_that_do_not_fit_together_run_one_after_another() {
    let mut few = profile();
    few.pages = 4;
    let mut bench = Bench::new(few, limits(), Script::default());
    let id = bench.admit(Request {
        choices: 3,
        ..request(0..10, 6)
    });
    bench.run();
    for choice in 0..3 {
        assert_eq!(bench.finish(id, choice), Some(&Finish::Length));
        assert_eq!(bench.tokens(id, choice).len(), 6);
    }
    assert_eq!(bench.engine.stats().pages_used, 0);
}

#[test]
fn who_is_preempted_loses_time_and_nothing_else() {
    let mut few = profile();
    few.pages = 9;
    let mut bench = Bench::new(few, limits(), Script::default());
    let ids = [0, 20, 40].map(|start| bench.admit(request(start..start + 4, 20)));
    bench.run();
    assert!(bench.engine.stats().preemptions > 0);
    for (id, start) in ids.into_iter().zip([0, 20, 40]) {
        let mut all = request(start..start + 4, 1).prompt.to_vec();
        (0..20).for_each(|_| all.push(greedy(&all)));
        assert_eq!(bench.tokens(id, 0), all[4..]);
    }
    let ends: Vec<RequestId> = bench
        .out
        .iter()
        .filter(|delivery| matches!(delivery.event, Event::Finished(_)))
        .map(|delivery| delivery.request)
        .collect();
    assert_eq!(ends[0], ids[0], "the oldest is never put back");
    assert_eq!(bench.engine.stats().decode_tokens, 60);
}

#[test]
fn lower_priorities_run_first_and_take_a_place_from_higher_ones() {
    let mut one = limits();
    one.running = 1;
    let mut bench = Bench::new(profile(), one, Script::default());
    let late = bench.admit(request(0..4, 8));
    bench.turn(1);
    bench.turn(1);
    let urgent = bench.admit(Request {
        priority: -1,
        ..request(8..12, 2)
    });
    let equal = bench.admit(request(16..20, 2));
    bench.run();
    let ends: Vec<_> = bench
        .out
        .iter()
        .filter(|delivery| matches!(delivery.event, Event::Finished(_)))
        .map(|delivery| delivery.request)
        .collect();
    assert_eq!(ends, [urgent, late, equal]);
    assert_eq!(bench.engine.stats().preemptions, 1);
}

#[test]
fn a_deadline_ends_who_runs_and_who_waits() {
    let mut one = limits();
    one.running = 1;
    let mut bench = Bench::new(profile(), one, Script::default());
    let due = |millis| Request {
        deadline: Some(Duration::from_millis(millis)),
        ..request(0..4, 200)
    };
    let (runs, waits) = (bench.admit(due(30)), bench.admit(due(20)));
    assert_eq!(
        bench.engine.next_deadline(),
        Some(Duration::from_millis(20))
    );
    bench.turn(1);
    bench.turn(18);
    assert_eq!(bench.finish(waits, 0), None);
    bench.turn(1);
    assert_eq!(bench.finish(waits, 0), Some(&Finish::Deadline));
    assert_eq!(bench.cached(waits), None, "it ended in the queue");
    bench.turn(10);
    assert_eq!(bench.finish(runs, 0), Some(&Finish::Deadline));
    assert_eq!(bench.engine.stats().pages_used, 0);
    assert_eq!(bench.engine.next_deadline(), None);
}

#[test]
fn a_cancel_frees_pages_at_once_and_nothing_is_delivered_after_it() {
    let mut bench = Bench::plain();
    let id = bench.admit(request(0..40, 100));
    bench.turn(1);
    assert!(bench.engine.stats().pages_used > 0);
    bench.engine.cancel(id);
    bench.engine.cancel(id);
    assert_eq!(bench.engine.stats().pages_used, 0);
    assert_eq!(bench.engine.stats().running, 0);
    assert_eq!(bench.turn(1), []);
}

#[test]
fn the_paused_rest_and_give_way_to_those_who_need_pages() {
    let mut few = profile();
    few.pages = 6;
    let mut bench = Bench::new(few, limits(), Script::default());
    let slow = bench.admit(request(0..8, 8));
    bench.turn(1);
    bench.turn(1);
    bench.engine.pause(slow);
    bench.turn(1);
    assert_eq!(bench.turn(1), []);
    assert!(bench.engine.stats().pages_used >= 2, "it keeps its pages");
    let needy = bench.admit(request(20..36, 8));
    bench.run();
    assert_eq!(bench.finish(needy, 0), Some(&Finish::Length));
    assert_eq!(bench.finish(slow, 0), None);
    bench.engine.resume(slow);
    bench.run();
    assert_eq!(bench.tokens(slow, 0).len(), 8);
}

#[test]
fn the_queue_is_bounded_by_requests_and_by_tokens() {
    let mut tight = limits();
    (tight.running, tight.queued_requests, tight.queued_tokens) = (1, 2, 50);
    let mut bench = Bench::new(profile(), tight, Script::default());
    bench.admit(request(0..4, 100));
    bench.turn(1);
    bench.admit(request(0..30, 1));
    let refused = bench
        .engine
        .admit(request(0..30, 1), bench.now)
        .unwrap_err();
    assert_eq!(refused, Refused::TooManyTokens { queued: 30 });
    bench.admit(request(0..4, 1));
    let refused = bench.engine.admit(request(0..4, 1), bench.now).unwrap_err();
    assert_eq!(refused, Refused::TooManyRequests { queued: 2 });
    let stats = bench.engine.stats();
    assert_eq!(
        (stats.running, stats.waiting, stats.waiting_tokens),
        (1, 2, 34)
    );
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    fn check(field: &str, change: impl FnOnce(&mut Request)) {
        let mut bench = Bench::plain();
        let mut request = request(0..4, 4);
        change(&mut request);
        match bench.engine.admit(request, Duration::ZERO) {
            Err(Refused::Invalid { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    check("prompt", |request| request.prompt = [].into());
    check("prompt", |request| {
        request.prompt = [TokenId(VOCABULARY)].into()
    });
    check("choices", |request| request.choices = 0);
    check("choices", |request| request.choices = u32::MAX);
    check("temperature", |request| {
        request.sampling.temperature = f32::NAN
    });
    check("temperature", |request| request.sampling.temperature = -1.0);
    check("temperature", |request| {
        request.sampling.temperature = f32::INFINITY
    });
    check("top_k", |request| request.sampling.top_k = Some(0));
    check("top_p", |request| request.sampling.top_p = 0.0);
    check("top_p", |request| request.sampling.top_p = 1.5);
    check("min_p", |request| request.sampling.min_p = f32::NAN);
    check("repetition", |request| {
        request.sampling.penalties.repetition = 0.0
    });
    check("presence", |request| {
        request.sampling.penalties.presence = f32::NAN
    });
    let twice = [(TokenId(1), 1.0), (TokenId(1), 1.0)];
    check("bias", |request| request.sampling.bias = twice.into());
    check("bias", |request| {
        request.sampling.bias = [(TokenId(VOCABULARY), 1.0)].into()
    });
    check("bias", |request| {
        request.sampling.bias = [(TokenId(1), f32::NAN)].into()
    });
    check("stop.tokens", |request| {
        request.stop.tokens = [TokenId(2), TokenId(1)].into()
    });
    check("stop.max_tokens", |request| request.stop.max_tokens = 0);
    check("stop.min_tokens", |request| request.stop.min_tokens = 5);
    check("logprobs", |request| {
        request.logprobs = Some(VOCABULARY + 1)
    });
    let only = |tokens: &[u32]| {
        let tokens = tokens.iter().copied().map(TokenId);
        Constraint::Only(TokenMask::only(VOCABULARY, tokens).into())
    };
    check("constraint", |request| request.constraint = only(&[]));
    check("constraint", |request| {
        request.constraint = only(&[3]);
        request.stop.tokens = [TokenId(3)].into();
        request.stop.min_tokens = 1;
    });
}

#[test]
fn what_can_never_fit_is_refused_and_what_just_fits_ends_with_the_context() {
    let mut few = profile();
    few.pages = 3;
    let mut bench = Bench::new(few, limits(), Script::default());
    let refused = bench
        .engine
        .admit(request(0..12, 1), bench.now)
        .unwrap_err();
    let (prompt, context) = (12, 12);
    assert_eq!(refused, Refused::TooLong { prompt, context });
    let id = bench.admit(request(0..8, 100));
    bench.run();
    assert_eq!(bench.tokens(id, 0).len(), 4);
    assert_eq!(bench.finish(id, 0), Some(&Finish::Length));
}

#[test]
fn a_stop_token_is_delivered_and_is_not_produced_before_its_time() {
    let mut bench = Bench::plain();
    let prompt = request(0..5, 1).prompt.to_vec();
    let first = greedy(&prompt);
    let mut stopping = request(0..5, 10);
    stopping.stop.tokens = [first].into();
    let id = bench.admit(stopping.clone());
    stopping.stop.min_tokens = 3;
    let later = bench.admit(stopping);
    bench.run();
    assert_eq!(bench.tokens(id, 0), [first]);
    assert_eq!(bench.finish(id, 0), Some(&Finish::Stop(first)));
    assert!(!bench.tokens(later, 0)[..3].contains(&first));
}

#[test]
fn a_passing_fault_costs_a_turn_and_three_in_a_row_the_device() {
    let fault = || Fault::Retry(Cause("busy".to_owned()));
    let mut script = Script::default();
    for (at, moment) in [
        (1, Moment::Submit),
        (2, Moment::Collect),
        (5, Moment::Collect),
    ] {
        script.faults.insert(at, (moment, fault()));
    }
    let mut bench = Bench::new(profile(), limits(), script);
    let id = bench.admit(request(0..5, 5));
    bench.run();
    assert_eq!(bench.tokens(id, 0).len(), 5);

    let faults = (1..4).map(|at| (at, (Moment::Submit, fault()))).collect();
    let script = Script {
        faults,
        ..Script::default()
    };
    lost(script, "busy");
}

#[test]
fn a_lost_device_ends_every_request_and_admits_none() {
    let fault = Fault::Restart(Cause("gone".to_owned()));
    let script = Script {
        faults: [(1, (Moment::Collect, fault))].into(),
        ..Script::default()
    };
    lost(script, "gone");
}

fn lost(script: Script, cause: &str) {
    let mut one = limits();
    one.running = 1;
    let mut bench = Bench::new(profile(), one, script);
    let ids = [0, 8].map(|start| bench.admit(request(start..start + 4, 50)));
    let mut out = Vec::new();
    let lost = loop {
        if let Err(lost) = bench.engine.turn(bench.now, &mut out) {
            break lost;
        }
    };
    assert!(lost.0.0.contains(cause));
    bench.out = out;
    for id in ids {
        assert!(matches!(bench.finish(id, 0), Some(Finish::Failed(why)) if why.contains(cause)));
    }
    assert_eq!(bench.engine.stats().pages_used, 0);
    let refused = bench.engine.admit(request(0..4, 1), bench.now);
    assert_eq!(refused, Err(Refused::Lost(lost.clone())));
    assert_eq!(bench.engine.turn(bench.now, &mut Vec::new()), Err(lost));
}

#[test]
fn only_the_request_that_the_device_rejects_fails() {
    let script = Script {
        poison: Some(TokenId(63)),
        ..Script::default()
    };
    let mut bench = Bench::new(profile(), limits(), script);
    let mut ids: Vec<_> = (0..7)
        .map(|at| bench.admit(request(at..at + 4, 4)))
        .collect();
    let guilty = bench.admit(request(60..64, 4));
    ids.extend((7..12).map(|at| bench.admit(request(at..at + 4, 4))));
    bench.run();
    assert!(matches!(bench.finish(guilty, 0), Some(Finish::Failed(why)) if why.contains("poison")));
    for (at, id) in (0..).zip(ids) {
        let mut all = request(at..at + 4, 1).prompt.to_vec();
        (0..4).for_each(|_| all.push(greedy(&all)));
        if !all.contains(&TokenId(63)) {
            assert_eq!(bench.tokens(id, 0), all[4..]);
        }
    }
}

#[test]
fn prompts_come_in_chunks_that_keep_to_the_time_of_a_step() {
    let mut roomy = profile();
    roomy.pages = 512;
    roomy.context = Axis::UpTo(1000);
    let mut wide = limits();
    (wide.step_tokens, wide.context) = (256, 1000);
    let mut bench = Bench::new(roomy, wide, Script::default());
    let prompt = |tokens: u32| Request {
        prompt: (0..tokens)
            .map(|at| TokenId((at * 7 + tokens) % 60))
            .collect(),
        ..request(0..1, 1)
    };
    // Nobody decodes: the whole budget. The step is waited for 100 ms: 400 microseconds a token.
    bench.admit(Request {
        stop: request(0..1, 500).stop,
        ..prompt(256)
    });
    bench.turn(1);
    bench.turn(1);
    assert_eq!(bench.engine.stats().prefill_tokens, 256);
    bench.turn(100);
    // Now somebody does: 10 ms hold 25 tokens, one of which is the decode row's.
    bench.admit(prompt(200));
    let mut ran = Vec::new();
    for _ in 0..4 {
        let before = bench.engine.stats().prefill_tokens;
        bench.turn(10);
        ran.push(bench.engine.stats().prefill_tokens - before);
    }
    // It takes 10 ms again and again, but for rounding.
    assert_eq!(ran[..2], [0, 24]);
    assert!(
        ran[2..].iter().all(|ran| (23..=25).contains(ran)),
        "{ran:?}"
    );
}

#[test]
fn where_prefill_and_decode_do_not_mix_they_take_turns() {
    let mut apart = profile();
    apart.mixed = false;
    apart.prefill = Axis::Buckets([8, 16].into());
    apart.decode = Axis::Buckets([4].into());
    let mut bench = Bench::new(apart, limits(), Script::default());
    let decodes = bench.admit(request(0..6, 30));
    bench.turn(1);
    bench.turn(1);
    bench.turn(1);
    assert_eq!(bench.engine.stats().padding_tokens, 2 + 3);
    bench.admit(request(10..58, 1));
    let before = bench.tokens(decodes, 0).len();
    (0..6).for_each(|_| drop(bench.turn(1)));
    assert_eq!(bench.tokens(decodes, 0).len() - before, 3);
    bench.run();
    assert_eq!(bench.tokens(decodes, 0).len(), 30);
}

#[test]
fn who_becomes_ready_while_a_step_decodes_joins_the_next_instead_of_having_one_apart() {
    for mixed in [true, false] {
        let mut profile = profile();
        (profile.mixed, profile.depth) = (mixed, 2);
        let mut bench = Bench::new(profile, limits(), Script::default());
        // One after another, so that each is ready at another time.
        for first in [0, 20, 40] {
            bench.admit(request(first..first + 10, 30));
            (0..5).for_each(|_| drop(bench.turn(1)));
        }
        let before = bench.engine.stats();
        let turns = 8;
        for _ in 0..turns {
            let tokens = bench.turn(1).len();
            assert_eq!(tokens, 3, "mixed: {mixed}");
        }
        assert_eq!(bench.engine.stats().steps, before.steps + turns);
    }
}

#[test]
fn the_same_inputs_give_the_same_outputs() {
    let trace = || {
        let mut few = profile();
        few.pages = 12;
        let mut bench = Bench::new(few, limits(), Script::default());
        for at in 0..10 {
            let mut sampled = request(at..at + 9, 12);
            sampled.choices = 1 + at % 3;
            sampled.sampling.temperature = 1.0;
            sampled.priority = i32::try_from(at % 2).unwrap();
            bench.admit(sampled);
            bench.turn(1);
        }
        bench.run();
        (bench.out, bench.engine.stats())
    };
    assert_eq!(trace(), trace());
}
