//! Tokens: each stands for one request that was allowed over the CRI socket, and lets one client
//! connect for it, once, within a minute (threat J4, CVE-2018-1002103 and its class).
//!
//! A token is 256 random bits; guessing is hopeless, so nothing but the number of those open is
//! limited. What is refused is refused in the same way whatever the reason.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Ticket;
use crate::failure::{Class, Failure};

/// How long a client may take to connect; the peers' value.
const LIFETIME: Duration = Duration::from_secs(60);

/// Tokens open at once; the peers' value.
const MOST: usize = 1000;

/// 256 bits.
type Key = [u8; 32];

/// The tokens that are open.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    tickets: HashMap<Key, Ticket>,
    /// In the order they were given out, so in the order they expire; used ones stay until then.
    given: VecDeque<(Instant, Key)>,
}

impl Tokens {
    /// A fresh token for `ticket`.
    ///
    /// # Errors
    /// [`Class::Exhausted`] while as many are open as may be.
    pub(super) fn give(&self, ticket: Ticket, now: Instant) -> Result<String, Failure> {
        let mut open = self.lock();
        open.forget_late(now);
        if open.tickets.len() >= MOST {
            return Err(Failure::new(
                Class::Exhausted,
                format!("{MOST} streams wait for their client; try again in a minute"),
            ));
        }
        let key = crate::node::random();
        open.given.push_back((now, key));
        open.tickets.insert(key, ticket);
        Ok(URL_SAFE_NO_PAD.encode(key))
    }

    /// What the token stands for. It is used up, whatever comes of it.
    pub(super) fn take(&self, token: &str, now: Instant) -> Option<Ticket> {
        let mut key = Key::default();
        let length = URL_SAFE_NO_PAD.decode_slice(token, &mut key).ok()?;
        if length != key.len() {
            return None;
        }
        let mut open = self.lock();
        open.forget_late(now);
        let ticket = open.tickets.remove(&key)?;
        if open.given.len() > 2 * MOST {
            let Open { tickets, given } = &mut *open;
            given.retain(|(_, key)| tickets.contains_key(key));
        }
        Some(ticket)
    }

    /// A panic elsewhere leaves the map as good as it was.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn forget_late(&mut self, now: Instant) {
        while let Some((given, key)) = self.given.front()
            && now.saturating_duration_since(*given) >= LIFETIME
        {
            self.tickets.remove(key);
            self.given.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(pod: &str) -> Ticket {
        Ticket::PortForward {
            pod: pod.to_owned(),
            ports: Vec::new(),
        }
    }

    #[test]
    fn a_token_serves_once_and_only_in_its_time() {
        let (tokens, start) = (Tokens::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let one = tokens.give(ticket("one"), start).unwrap();
        let two = tokens.give(ticket("two"), after(30)).unwrap();
        assert_ne!(one, two);
        assert_eq!(one.len(), 43, "256 bits as base64url without padding");
        assert_eq!(tokens.take(&two, after(40)), Some(ticket("two")));
        assert_eq!(tokens.take(&two, after(40)), None, "replayed");
        assert_eq!(tokens.take(&one, after(60)), None, "late");
    }

    #[test]
    fn what_is_no_token_is_none() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.give(ticket("p"), now).unwrap();
        for other in [
            "",
            "/",
            "abc",
            &token[1..],
            &format!("{token}A"),
            &format!("{token}="),
            &"A".repeat(43),
            &"A".repeat(10_000),
        ] {
            assert_eq!(tokens.take(other, now), None, "{other:?}");
        }
        assert!(tokens.take(&token, now).is_some());
    }

    #[test]
    fn so_many_are_open_at_once_and_used_ones_leave_nothing() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        for _ in 0..10 * MOST {
            let token = tokens.give(ticket("p"), now).unwrap();
            tokens.take(&token, now).unwrap();
        }
        assert!(tokens.lock().given.len() <= 2 * MOST + 1);
        for _ in 0..MOST {
            tokens.give(ticket("p"), now).unwrap();
        }
        let refused = tokens.give(ticket("p"), now).unwrap_err();
        assert_eq!(refused.class(), Class::Exhausted);
        let later = now + LIFETIME;
        assert!(tokens.give(ticket("p"), later).is_ok());
        assert_eq!(tokens.lock().tickets.len(), 1);
    }
}
