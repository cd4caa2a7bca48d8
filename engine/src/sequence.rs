//! One continuation of one request: its tokens, its pages, and how far it has come.

use std::sync::Arc;

use crate::delivery::Scored;
use crate::pages::{Pages, PrefixHash};
use crate::request::{Finish, Priority, Request, RequestId};
use crate::sample::Seen;
use crate::step::{PageId, TokenId};

/// Who goes first: by priority, then arrival, then choice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Rank {
    pub(crate) priority: Priority,
    pub(crate) request: RequestId,
    pub(crate) choice: u32,
}

/// One continuation of one request.
///
/// Until the prompt is computed, one sequence stands for all choices of its request: the others are
/// its `siblings`.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) rank: Rank,
    pub(crate) request: Arc<Request>,
    pub(crate) choice: u32,
    /// Choices that fork from this one when the prompt is computed, ascending.
    pub(crate) siblings: Vec<u32>,
    /// Prompt and output.
    pub(crate) tokens: Vec<TokenId>,
    /// Pages from position 0; they hold all of `tokens`, but perhaps for the last.
    pub(crate) pages: Vec<PageId>,
    /// Hashes of full pages, as far as they were needed.
    hashes: Vec<PrefixHash>,
    /// Pages that were found in the prefix cache or offered to it.
    published: usize,
    /// The page whose copy is to be the last of `pages`: held until the copy has landed.
    pub(crate) copy_from: Option<PageId>,
    /// Positions whose KV is known to be in `pages`.
    pub(crate) landed: u32,
    /// Those, and the positions of steps in flight.
    pub(crate) launched: u32,
    /// The most that `landed` ever was: below it, work is done again.
    pub(crate) reached: u32,
    /// Prompt tokens found in the prefix cache.
    pub(crate) cached: u32,
    /// Whether it has left the queue, once.
    pub(crate) started: bool,
    pub(crate) paused: bool,
    /// Tokens at which it ends: prompt and output.
    end: u32,
    pub(crate) seen: Seen,
    /// The prompt's tokens scored so far; `None` unless they are (still) asked for.
    pub(crate) scoring: Option<Vec<Scored>>,
}

/// A length that is known to fit: prompts are bounded by the context.
pub(crate) fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl Sequence {
    /// The sequence that stands for a request in the queue. `context` is the most tokens a sequence
    /// may have.
    pub(crate) fn new(id: RequestId, request: Arc<Request>, context: u32) -> Self {
        let prompt = len32(request.prompt.len());
        Self {
            rank: Rank {
                priority: request.priority,
                request: id,
                choice: 0,
            },
            choice: 0,
            siblings: (1..request.choices).collect(),
            tokens: request.prompt.to_vec(),
            pages: Vec::new(),
            hashes: Vec::new(),
            published: 0,
            copy_from: None,
            landed: 0,
            launched: 0,
            reached: 0,
            cached: 0,
            started: false,
            paused: false,
            end: prompt.saturating_add(request.stop.max_tokens).min(context),
            seen: Seen::new(&request),
            // The first token of a prompt has no score.
            scoring: request
                .prompt_logprobs
                .filter(|_| prompt > 1)
                .map(|_| Vec::new()),
            request,
        }
    }

    /// Tokens of the prompt.
    pub(crate) fn prompt(&self) -> u32 {
        len32(self.request.prompt.len())
    }

    /// Tokens produced.
    pub(crate) fn produced(&self) -> u32 {
        len32(self.tokens.len()) - self.prompt()
    }

    /// All choices this sequence stands for, ascending.
    pub(crate) fn choices(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::once(self.choice).chain(self.siblings.iter().copied())
    }

    /// Tokens that could be in the next step. What is scored stops short of the prompt's last
    /// token: no known token follows it, and it may have a mask, which scores must not see.
    pub(crate) fn pending(&self) -> u32 {
        let goal = match self.scoring {
            Some(_) => self.prompt() - 1,
            None => len32(self.tokens.len()),
        };
        goal - self.launched
    }

    /// Whether a step with it is in flight.
    pub(crate) fn in_flight(&self) -> bool {
        self.launched > self.landed
    }

    /// Whether its pages hold all of its tokens.
    pub(crate) fn has_room(&self, pages: &Pages) -> bool {
        self.pages.len() >= pages.needed(len32(self.tokens.len()))
    }

    /// Takes pages for all its tokens, sharing those of its prefix that are cached, and leaves
    /// `spare` others. Whether there were enough; if not, nothing has changed.
    pub(crate) fn settle(&mut self, pages: &mut Pages, spare: usize) -> bool {
        let cached = self.cached_pages(pages);
        let from_kept = cached.iter().filter(|page| pages.is_kept(**page)).count();
        let fresh = pages.needed(len32(self.tokens.len())) - cached.len();
        if pages.available() < from_kept + fresh + spare {
            return false;
        }
        cached.iter().for_each(|page| pages.hold(*page));
        self.published = cached.len();
        self.landed = len32(cached.len()) * pages.page_tokens();
        self.launched = self.landed;
        self.pages = cached;
        self.pages.extend((0..fresh).map_while(|_| pages.take()));
        if !self.started {
            self.cached = self.landed;
        }
        true
    }

    /// Cached pages of its prefix, never all: the last token is always computed.
    fn cached_pages(&mut self, pages: &mut Pages) -> Vec<PageId> {
        if self.scoring.is_some() {
            return Vec::new();
        }
        let most = (self.tokens.len() - 1) / pages.page_tokens() as usize;
        (0..most)
            .map_while(|index| {
                let hash = self.hash(index, pages);
                pages.find(hash)
            })
            .collect()
    }

    /// The hash of its page `index`, for which those before are known.
    fn hash(&mut self, index: usize, pages: &mut Pages) -> PrefixHash {
        if let Some(hash) = self.hashes.get(index) {
            return *hash;
        }
        let size = pages.page_tokens() as usize;
        let tokens = &self.tokens[index * size..][..size];
        let hash = pages.hash(self.hashes.last().copied(), self.request.cache_salt, tokens);
        self.hashes.push(hash);
        hash
    }

    /// Takes note that all before position `end` has landed, and offers the pages that became full
    /// to the prefix cache.
    pub(crate) fn land(&mut self, end: u32, pages: &mut Pages) {
        self.landed = end;
        self.reached = self.reached.max(end);
        if let Some(page) = self.copy_from.take() {
            pages.release(page);
        }
        while (self.published + 1) * pages.page_tokens() as usize <= end as usize {
            let hash = self.hash(self.published, pages);
            pages.publish(self.pages[self.published], hash);
            self.published += 1;
        }
    }

    /// Gives all pages back; what was computed is to be computed again.
    pub(crate) fn vacate(&mut self, pages: &mut Pages) {
        // The last page first: of a prefix in the cache the end is forgotten before the beginning.
        for page in self.pages.drain(..).rev().chain(self.copy_from.take()) {
            pages.release(page);
        }
        self.landed = 0;
        self.launched = 0;
        self.published = 0;
        if let Some(scored) = &mut self.scoring {
            scored.clear();
        }
    }

    /// Another choice of the same request, at the end of the prompt, without pages.
    pub(crate) fn fork(&self, choice: u32) -> Self {
        Self {
            rank: Rank {
                choice,
                ..self.rank
            },
            request: Arc::clone(&self.request),
            choice,
            siblings: Vec::new(),
            tokens: self.request.prompt.to_vec(),
            pages: Vec::new(),
            hashes: self.hashes.clone(),
            published: 0,
            copy_from: None,
            landed: 0,
            launched: 0,
            reached: self.prompt(),
            cached: self.cached,
            started: true,
            paused: self.paused,
            end: self.end,
            seen: Seen::new(&self.request),
            scoring: None,
        }
    }

    /// Shares the prompt's pages with `leader`, who has computed it; a partly filled last page is to
    /// be copied. Whether there was a page for that; if not, nothing has changed.
    pub(crate) fn settle_beside(&mut self, leader: &Sequence, pages: &mut Pages) -> bool {
        let prompt = self.prompt();
        let full = (prompt / pages.page_tokens()) as usize;
        if pages.needed(prompt) > full {
            let Some(page) = pages.take() else {
                return false;
            };
            pages.hold(leader.pages[full]);
            self.copy_from = Some(leader.pages[full]);
            self.pages.push(page);
        }
        leader.pages[..full]
            .iter()
            .for_each(|page| pages.hold(*page));
        self.pages.splice(..0, leader.pages[..full].iter().copied());
        self.published = full;
        self.landed = prompt;
        self.launched = prompt;
        true
    }

    /// Adds a token; why it is the last, if it is.
    pub(crate) fn push(&mut self, token: TokenId) -> Option<Finish> {
        let stop = &self.request.stop;
        let may_stop = self.produced() >= stop.min_tokens;
        self.tokens.push(token);
        self.seen.add(token);
        if may_stop && stop.tokens.binary_search(&token).is_ok() {
            return Some(Finish::Stop(token));
        }
        (len32(self.tokens.len()) >= self.end).then_some(Finish::Length)
    }

    /// Pages it holds, each once for each hold.
    pub(crate) fn held(&self) -> impl Iterator<Item = PageId> + '_ {
        self.pages.iter().copied().chain(self.copy_from)
    }
}
