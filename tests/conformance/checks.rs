//! The checks. Each has a fresh device that holds 32 pages or more, 64 prefill tokens and 4 decode
//! rows a step, and 128 positions.

use engine::{Candidates, Fault, Ticket, TokenId, TokenMask};

use crate::device::{Answer, Ask, Device, Wish, answers, len, with_step};

pub(crate) fn chunks_of_a_prompt_do_not_matter(device: &mut Device) {
    let prompt = device.tokens(1, 50);
    let pages = device.pages(0, 50);
    let whole = device.answer(Ask::prompt(&prompt, &pages));
    for chunks in [
        &[1; 50][..],
        &[7, 16, 17, 10],
        &[49, 1],
        &[16, 16, 16, 2],
        &[3, 47],
    ] {
        let pages = device.pages(8, 50);
        let chunked = in_chunks(device, &prompt, &pages, chunks);
        device.check_same(&format!("chunks of {chunks:?}"), &whole, &chunked);
    }
}

pub(crate) fn alone_or_in_company_is_the_same(device: &mut Device) {
    let prompt = device.tokens(1, 20);
    let pages = device.pages(0, 21);
    let alone = device.answer(Ask::prompt(&prompt, &pages));
    let next_alone = device.answer(Ask::at(20, &[5], &pages));

    let mut rows = vec![Ask::prompt(&prompt, &pages)];
    for (series, count) in [(2, 1), (3, 17), (4, 2), (5, 1)] {
        let tokens = device.tokens(series, count);
        let pages = device.pages(4 * series, count);
        rows.push(Ask::prompt(&tokens, &pages));
    }
    if device.profile().mixed {
        for place in 0..rows.len() {
            rows.swap(0, place);
            let answers = device.run(&[], &rows).expect("a valid step");
            device.check_same("in company", &alone, &answers[place]);
            rows.swap(0, place);
        }
    }
    let mut decode = vec![Ask::at(20, &[5], &pages)];
    for series in 2..5 {
        decode.push(Ask::prompt(&device.tokens(series, 1), &[4 * series]));
    }
    for place in 0..decode.len() {
        decode.swap(0, place);
        let answers = device.run(&[], &decode).expect("a valid step");
        device.check_same("decoded in company", &next_alone, &answers[place]);
        decode.swap(0, place);
    }
}

pub(crate) fn the_order_of_pages_is_free(device: &mut Device) {
    let prompt = device.tokens(1, 60);
    let mut pages = device.pages(0, 60);
    let in_order = device.answer(Ask::prompt(&prompt, &pages));
    pages.reverse();
    let reversed = device.answer(Ask::prompt(&prompt, &pages));
    device.check_same("pages in reverse", &in_order, &reversed);
    let last = device.profile().pages - 1;
    let scattered: Vec<_> = (0..len(pages.len())).map(|page| last - page * 5).collect();
    let scattered = device.answer(Ask::prompt(&prompt, &scattered));
    device.check_same("pages here and there", &in_order, &scattered);
}

pub(crate) fn a_used_page_is_as_good_as_a_new_one(device: &mut Device) {
    let (prompt, other) = (device.tokens(1, 40), device.tokens(2, 60));
    let pages = device.pages(0, 60);
    let fresh = device.answer(Ask::prompt(&prompt, &pages[..device.pages(0, 40).len()]));
    device.answer(Ask::prompt(&other, &pages));
    let used = device.answer(Ask::prompt(&prompt, &pages));
    device.check_same("on used pages", &fresh, &used);
}

pub(crate) fn a_shared_prefix_is_as_good_as_an_own_one(device: &mut Device) {
    let page = device.profile().page_tokens;
    let prefix = device.tokens(1, page as usize);
    device.answer(Ask::prompt(&prefix, &[3]));
    let (one, other) = (device.tokens(2, 5), device.tokens(3, 7));
    let own = |device: &mut Device, rest: &[u32], pages: &[u32]| {
        let whole = [&prefix[..], rest].concat();
        device.answer(Ask::prompt(&whole, pages))
    };
    let own_one = own(device, &one, &[10, 11]);
    let own_other = own(device, &other, &[12, 13]);
    let rows = [Ask::at(page, &one, &[3, 4]), Ask::at(page, &other, &[3, 5])];
    let shared = device.run(&[], &rows).expect("a valid step");
    device.check_same("the first that shares", &own_one, &shared[0]);
    device.check_same("the second that shares", &own_other, &shared[1]);
}

pub(crate) fn a_copied_page_is_as_good(device: &mut Device) {
    let prompt = device.tokens(1, 10);
    device.answer(Ask::prompt(&prompt, &[0]));
    let one = device.answer(Ask::at(10, &[5], &[0]));
    // The copy holds what the page held when the step was submitted, and then goes its own way.
    let rows = [Ask::at(10, &[7], &[1]), Ask::at(10, &[5], &[2])];
    let copies = device.run(&[(0, 1), (0, 2)], &rows).expect("a valid step");
    device.check_same("on a copy", &one, &copies[1]);
    assert_ne!(one, copies[0]);
    device.run(&[(1, 9)], &[]).expect("a step may only copy");
    let next = device.answer(Ask::at(11, &[3], &[0]));
    let [own, copy] = [1, 9].map(|page| device.answer(Ask::at(11, &[3], &[page])));
    device.check_same("on a copy of a copy", &own, &copy);
    let same = device.answer(Ask::at(11, &[3], &[2]));
    device.check_same("after a copy went its way", &next, &same);
}

pub(crate) fn a_mask_shares_the_probability_among_the_allowed(device: &mut Device) {
    let vocabulary = device.profile().vocabulary;
    let ask = Ask::prompt(&device.tokens(1, 9), &[0]);
    let free = device.answer(ask.clone());
    for allowed in [
        vec![vocabulary - 1],
        vec![0, 31, 32, 33, 70, vocabulary - 2],
    ] {
        let mask = TokenMask::only(vocabulary, allowed.iter().copied().map(TokenId));
        let rows = [
            ask.clone().masked(mask),
            Ask::prompt(&device.tokens(2, 3), &[1]),
        ];
        let answers = device.run(&[], &rows).expect("a valid step");
        let masked = &answers[0];
        let ids: Vec<_> = masked.best.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, allowed);
        device.check_near("a masked sum", total(masked), 1.0);
        for (id, logprob) in &masked.best {
            let logit = logprob + masked.normalizer;
            match free.logprob(*id) {
                Some(logprob) => {
                    device.check_near("a masked logit", logit, logprob + free.normalizer);
                }
                None => device.check_below("a masked logit", logit, free.least() + free.normalizer),
            }
        }
        let all = device.profile().candidates.min(vocabulary) as usize;
        assert_eq!(answers[1].best.len(), all, "a mask is for its row only");
    }
}

pub(crate) fn the_best_are_the_best_of_all(device: &mut Device) {
    let most = device.profile().candidates;
    let ask = Ask::prompt(&device.tokens(1, 33), &[0, 1, 2]);
    let all = device.answer(ask.clone());
    assert_eq!(all.best.len(), most as usize);
    if most == device.profile().vocabulary {
        device.check_near("the sum of all", total(&all), 1.0);
    }
    let mut sorted = all.best.clone();
    sorted.sort_by(|one, other| other.1.total_cmp(&one.1).then(one.0.cmp(&other.0)));
    for width in [1, 2, 16, 17, 100]
        .into_iter()
        .filter(|width| *width <= most)
    {
        let mut expected = sorted[..width as usize].to_vec();
        expected.sort_by_key(|(id, _)| *id);
        let answer = device.answer(ask.clone().wishing(Wish::Best(width)));
        let expected = Answer {
            best: expected,
            ..answer.clone()
        };
        device.check_same(&format!("the best {width}"), &expected, &answer);
    }
}

pub(crate) fn each_position_is_scored_as_if_asked_alone(device: &mut Device) {
    let prompt = device.tokens(1, 21);
    let (tokens, targets) = (&prompt[..20], prompt[1..].to_vec());
    let each = Wish::Each(u32::MAX, targets.clone());
    let rows = [
        Ask::prompt(&device.tokens(2, 3), &[4]).wishing(Wish::Best(1)),
        Ask::prompt(tokens, &[0, 1]).wishing(each),
    ];
    let answers = device.run(&[], &rows).expect("a valid step");
    assert_eq!(answers.len(), 21);
    for (place, (scored, target)) in answers[1..].iter().zip(targets).enumerate() {
        let alone = device.answer(Ask::prompt(&tokens[..=place], &[8, 9]));
        device.check_same(&format!("position {place}"), &alone, scored);
        match alone.logprob(target) {
            Some(logprob) => device.check_near("a target", target_of(scored), logprob),
            None => device.check_below("a target", target_of(scored), alone.least()),
        }
    }
    let last = Ask::at(19, &tokens[19..], &[0, 1]).wishing(Wish::Each(1, vec![prompt[20]]));
    let last = device.answer(last);
    device.check_near("the last target", target_of(&last), target_of(&answers[20]));
    assert_eq!(last.best.len(), 1);
}

pub(crate) fn what_is_not_asked_is_not_answered(device: &mut Device) {
    let prompt = device.tokens(1, 30);
    let silent = Ask::prompt(&prompt[..29], &[0, 1]).wishing(Wish::Nothing);
    assert_eq!(device.run(&[], &[silent]), Ok(vec![]));
    let after = device.answer(Ask::at(29, &prompt[29..], &[0, 1]));
    let whole = device.answer(Ask::prompt(&prompt, &[2, 3]));
    device.check_same("after a silent row", &whole, &after);
    assert_eq!(device.run(&[], &[]), Ok(vec![]), "an empty step");
}

pub(crate) fn steps_are_collected_once_and_in_order(device: &mut Device) {
    let prompts: Vec<_> = (0..=device.profile().depth)
        .map(|series| Ask::prompt(&device.tokens(series, 5), &[series]))
        .collect();
    let expected: Vec<_> = prompts
        .iter()
        .map(|ask| device.answer(ask.clone()))
        .collect();
    let (last, fitting) = prompts.split_last().expect("a depth of 1 or more");
    let submit = |device: &mut Device, ask: &Ask| {
        with_step(&[], std::slice::from_ref(ask), |step| {
            device.backend.submit(step)
        })
    };
    let tickets: Vec<_> = fitting
        .iter()
        .map(|ask| submit(device, ask).expect("no more than fit"))
        .collect();
    assert!(
        matches!(submit(device, last), Err(Fault::Reject(_))),
        "one step too many"
    );
    let mut out = Candidates::default();
    for (ticket, expected) in tickets.into_iter().zip(&expected) {
        let Ticket(number) = ticket;
        device
            .backend
            .collect(ticket, &mut out)
            .expect("the oldest step");
        let answers = answers(&out);
        assert_eq!(answers.len(), 1, "what was there before is gone");
        device.check_same("a step of several", expected, &answers[0]);
        let again = device.backend.collect(Ticket(number), &mut out);
        assert!(matches!(again, Err(Fault::Reject(_))), "collected twice");
    }
}

pub(crate) fn a_rejected_step_leaves_the_device_usable(device: &mut Device) {
    let prompt = device.tokens(1, 20);
    let good = Ask::prompt(&prompt, &[0, 1]);
    let expected = device.answer(good.clone());
    let before = device.answer(Ask::at(20, &[1], &[0, 1]));
    for (what, rows) in bad_rows(device) {
        check_rejected(device, what, &[], &rows, &before);
    }
    let pages = device.profile().pages;
    for (what, copies) in [
        ("a copy of an unknown page", [(0, 4), (pages, 3)]),
        ("a copy to an unknown page", [(0, 4), (3, pages)]),
        ("two copies to a page", [(0, 3), (1, 3)]),
        ("a copy of a copy", [(0, 3), (3, 4)]),
    ] {
        let other = Ask::prompt(&prompt[..5], &[2]);
        check_rejected(device, what, &copies, &[other], &before);
    }
    let mixed = [good.clone(), Ask::prompt(&[], &[0])];
    check_rejected(
        device,
        "a good row beside a bad one",
        &[(2, 0)],
        &mixed,
        &before,
    );
    let after = device.answer(good);
    device.check_same("after all", &expected, &after);
}

/// Rows that no device can run, and why.
fn bad_rows(device: &Device) -> Vec<(&'static str, Vec<Ask>)> {
    let profile = device.profile();
    let prompt = device.tokens(1, 20);
    let other = Ask::prompt(&prompt[..5], &[2]);
    let mask = |count, allowed| TokenMask::only(count, allowed);
    let (vocabulary, most) = (profile.vocabulary, profile.context.most());
    let empty = mask(vocabulary, None);
    let short = mask(1, Some(TokenId(0)));
    let unknown = Wish::Each(1, vec![vocabulary]);
    vec![
        ("no token", vec![Ask::prompt(&[], &[0])]),
        ("an unknown token", vec![Ask::prompt(&[vocabulary], &[0])]),
        ("an unknown page", vec![Ask::prompt(&[1], &[profile.pages])]),
        ("too few pages", vec![Ask::prompt(&prompt, &[0])]),
        (
            "behind the end",
            vec![Ask::at(most, &[1], &all_pages(most))],
        ),
        ("behind all ends", vec![Ask::at(u32::MAX, &[1], &[0])]),
        ("width 0", vec![other.clone().wishing(Wish::Best(0))]),
        (
            "too few targets",
            vec![other.clone().wishing(Wish::Each(1, vec![1]))],
        ),
        (
            "an unknown target",
            vec![Ask::prompt(&[1], &[2]).wishing(unknown)],
        ),
        ("an empty mask", vec![other.clone().masked(empty)]),
        ("a short mask", vec![other.clone().masked(short)]),
        ("a page of two rows", vec![other.clone(), other]),
        (
            "a page read and written",
            vec![Ask::at(20, &[1], &[0, 1]), Ask::prompt(&[1], &[0])],
        ),
        ("a page twice in a row", vec![Ask::prompt(&prompt, &[2, 2])]),
        (
            "too many decode rows",
            decode_rows(profile.decode.most() + 1),
        ),
    ]
}

/// Runs a bad step, and then a decode row whose answer was `before`.
fn check_rejected(
    device: &mut Device,
    what: &str,
    copies: &[(u32, u32)],
    rows: &[Ask],
    before: &Answer,
) {
    let result = device.run(copies, rows);
    assert!(
        matches!(result, Err(Fault::Reject(_))),
        "{what}: {result:?}"
    );
    let after = device.answer(Ask::at(20, &[1], &[0, 1]));
    device.check_same(&format!("after {what}"), before, &after);
}

/// Pages for `positions` positions and one more.
fn all_pages(positions: u32) -> Vec<u32> {
    (0..=positions).collect()
}

/// More rows than pages would do: all the same.
fn decode_rows(count: u32) -> Vec<Ask> {
    (0..count).map(|row| Ask::prompt(&[1], &[row])).collect()
}

/// Runs `prompt` in chunks and gives the last answer.
fn in_chunks(device: &mut Device, prompt: &[u32], pages: &[u32], chunks: &[usize]) -> Answer {
    let mut start = 0;
    let mut last = None;
    for chunk in chunks {
        let tokens = &prompt[start..start + chunk];
        last = Some(device.answer(Ask::at(len(start), tokens, pages)));
        start += chunk;
    }
    last.expect("at least one chunk")
}

/// The log-probability of the token that was known to follow.
fn target_of(answer: &Answer) -> f32 {
    answer.target.expect("each position has a target")
}

/// What all probabilities add up to.
fn total(answer: &Answer) -> f32 {
    answer.best.iter().map(|(_, logprob)| logprob.exp()).sum()
}
