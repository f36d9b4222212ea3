//! The conformance suites, run on plugins that are broken on purpose. A suite that accepts a broken
//! plugin checks too little.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use quorate_core::conformance;
use quorate_core::membership::{MemberState, MemberView, Membership, OutgoingMessage};
use quorate_core::object::MergeRule;
use quorate_core::resolver::ConflictResolver;
use quorate_core::storage::{Capability, Page, Range, RecordAction, StorageEngine, StorageError, Update};
use quorate_core::{Member, NodeId, StorageKey, Version};

/// The fault that the storage engine in this file is given.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Flaw {
    None,
    ReadsLockNothing,
    ForgetsApplied,
    FinishesTwice,
    AppliesRejected,
    KeepRemoves,
    RemoveFails,
    CutsLongKeys,
    CutsLargeValues,
    ScanIncludesItsEnd,
    ScanRepeatsItsStart,
    ScanIgnoresLimit,
    ScanIgnoresBytes,
    ScanNeverSaysMore,
    ScanIsUnordered,
    RunsBatchesBackwards,
    RejectsWholeBatch,
    ForgetsOnRestart,
    ForgetsTheLastOnDrop,
    CopiesLater,
    CopiesIntoUsedFolders,
}

const FLAWS: [Flaw; 20] = [
    Flaw::ReadsLockNothing,
    Flaw::ForgetsApplied,
    Flaw::FinishesTwice,
    Flaw::AppliesRejected,
    Flaw::KeepRemoves,
    Flaw::RemoveFails,
    Flaw::CutsLongKeys,
    Flaw::CutsLargeValues,
    Flaw::ScanIncludesItsEnd,
    Flaw::ScanRepeatsItsStart,
    Flaw::ScanIgnoresLimit,
    Flaw::ScanIgnoresBytes,
    Flaw::ScanNeverSaysMore,
    Flaw::ScanIsUnordered,
    Flaw::RunsBatchesBackwards,
    Flaw::RejectsWholeBatch,
    Flaw::ForgetsOnRestart,
    Flaw::ForgetsTheLastOnDrop,
    Flaw::CopiesLater,
    Flaw::CopiesIntoUsedFolders,
];

type Records = BTreeMap<Bytes, Bytes>;

/// The "disks" of engines, by folder. They outlive the engines.
type Disks = Arc<Mutex<BTreeMap<PathBuf, Arc<Mutex<Records>>>>>;

struct Engine {
    flaw: Flaw,
    records: Arc<Mutex<Records>>,
    last: Mutex<Option<Bytes>>,
    disks: Disks,
}

fn open(flaw: Flaw, disks: &Disks, folder: &Path) -> Arc<Engine> {
    let mut all = disks.lock().unwrap();
    if flaw == Flaw::ForgetsOnRestart {
        all.remove(folder);
    }
    let records = all.entry(folder.to_owned()).or_default().clone();
    Arc::new(Engine { flaw, records, last: Mutex::new(None), disks: disks.clone() })
}

impl Engine {
    fn name(&self, key: &StorageKey) -> Bytes {
        let length = if self.flaw == Flaw::CutsLongKeys { 100 } else { usize::MAX };
        Bytes::copy_from_slice(&key.as_bytes()[..key.as_bytes().len().min(length)])
    }

    fn apply(&self, records: &mut Records, name: Bytes, change: RecordAction) -> Result<(), StorageError> {
        *self.last.lock().unwrap() = Some(name.clone());
        match change {
            RecordAction::Keep if self.flaw == Flaw::KeepRemoves => drop(records.remove(&name)),
            RecordAction::Keep => {}
            RecordAction::Remove => {
                if records.remove(&name).is_none() && self.flaw == Flaw::RemoveFails {
                    return Err(StorageError::Io { detail: "not there".into() });
                }
            }
            RecordAction::Put(mut value) => {
                if self.flaw == Flaw::CutsLargeValues {
                    value.truncate(1024 * 1024);
                }
                records.insert(name, value);
            }
        }
        Ok(())
    }

    fn run(&self, update: &mut Box<dyn Update>) -> Result<(), StorageError> {
        let name = self.name(update.key());
        if self.flaw == Flaw::ReadsLockNothing {
            let stored = self.records.lock().unwrap().get(&name).cloned();
            let change = update.change(stored)?;
            std::thread::yield_now();
            return self.apply(&mut self.records.lock().unwrap(), name, change);
        }
        let mut records = self.records.lock().unwrap();
        let stored = records.get(&name).cloned();
        match update.change(stored) {
            Err(_) if self.flaw == Flaw::AppliesRejected => {
                self.apply(&mut records, name, RecordAction::Remove)
            }
            Err(error) => Err(error),
            Ok(change) => self.apply(&mut records, name, change),
        }
    }
}

impl StorageEngine for Engine {
    fn get(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        Ok(self.records.lock().unwrap().get(&self.name(key)).cloned())
    }

    fn update(&self, mut batch: Vec<Box<dyn Update>>) {
        if self.flaw == Flaw::RunsBatchesBackwards {
            batch.reverse();
        }
        let mut failed = None;
        for mut update in batch {
            let outcome = match &failed {
                Some(error) if self.flaw == Flaw::RejectsWholeBatch => Err(StorageError::clone(error)),
                _ => self.run(&mut update),
            };
            failed = failed.or(outcome.clone().err());
            if outcome.is_ok() && self.flaw != Flaw::ForgetsApplied {
                update.applied();
            }
            if self.flaw == Flaw::FinishesTwice {
                update.applied();
            }
            update.finished(outcome);
        }
    }

    fn scan(&self, range: Range<'_>) -> Result<Page, StorageError> {
        let records = self.records.lock().unwrap();
        let mut page = Page::default();
        let mut bytes = 0;
        for (key, value) in records.iter() {
            let after_start = match self.flaw {
                Flaw::ScanRepeatsItsStart => &key[..] >= range.start,
                _ => &key[..] > range.start || (!range.after && &key[..] == range.start),
            };
            let before_end = range.end.is_none_or(|end| match self.flaw {
                Flaw::ScanIncludesItsEnd => &key[..] <= end,
                _ => &key[..] < end,
            });
            if !after_start || !before_end {
                continue;
            }
            let full = page.records.len() >= range.limit && self.flaw != Flaw::ScanIgnoresLimit;
            let heavy =
                bytes >= range.max_bytes && !page.records.is_empty() && self.flaw != Flaw::ScanIgnoresBytes;
            if full || heavy {
                page.more = self.flaw != Flaw::ScanNeverSaysMore;
                break;
            }
            bytes += key.len() + value.len();
            page.records.push((key.clone(), value.clone()));
        }
        if self.flaw == Flaw::ScanIsUnordered {
            page.records.sort_by_key(|(key, _)| key.iter().rev().copied().collect::<Vec<u8>>());
        }
        Ok(page)
    }

    fn checkpoint(&self, folder: &Path) -> Result<(), StorageError> {
        let mut disks = self.disks.lock().unwrap();
        if disks.contains_key(folder) && self.flaw != Flaw::CopiesIntoUsedFolders {
            return Err(StorageError::Io { detail: "the folder is not empty".into() });
        }
        let copy = match self.flaw {
            Flaw::CopiesLater => self.records.clone(),
            _ => Arc::new(Mutex::new(self.records.lock().unwrap().clone())),
        };
        disks.insert(folder.to_owned(), copy);
        Ok(())
    }

    fn capability(&self) -> Capability {
        Capability { durable: true, ack_when_durable: false, survives_restart: true }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.flaw == Flaw::ForgetsTheLastOnDrop
            && let Some(last) = self.last.lock().unwrap().take()
        {
            self.records.lock().unwrap().remove(&last);
        }
    }
}

fn passes(run: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(run)).is_ok()
}

fn storage_passes(flaw: Flaw) -> bool {
    passes(|| {
        let disks = Disks::default();
        conformance::storage::run(|context| open(flaw, &disks, context.data_folder));
    })
}

/// The engine without a flaw passes the suite. With any one of the flaws it fails.
#[test]
fn every_broken_storage_engine_fails_the_suite() {
    assert!(storage_passes(Flaw::None));
    for flaw in FLAWS {
        assert!(!storage_passes(flaw), "{flaw:?} was not noticed");
    }
}

struct Resolver {
    resolve: fn(Vec<&Version>) -> Vec<&Version>,
    rule: MergeRule,
}

impl ConflictResolver for Resolver {
    fn resolve<'a>(&self, versions: Vec<&'a Version>) -> Vec<&'a Version> {
        (self.resolve)(versions)
    }

    fn merge_rule(&self) -> MergeRule {
        self.rule
    }
}

fn sorted(mut versions: Vec<&Version>) -> Vec<&Version> {
    versions.sort_by_key(|version| (version.dot.stamp, version.dot.actor));
    versions
}

#[test]
fn every_broken_resolver_fails_the_suite() {
    let keep_all = |resolve| Resolver { resolve, rule: MergeRule::KeepAll };
    assert!(passes(|| conformance::resolver::run(|_| keep_all(sorted))));
    let broken: [(&str, Resolver); 5] = [
        ("shows nothing", keep_all(|_| Vec::new())),
        ("shows the first given", keep_all(|versions| versions.into_iter().take(1).collect())),
        ("is not in stamp order", keep_all(|versions| sorted(versions).into_iter().rev().collect())),
        (
            "drops one each time",
            keep_all(|versions| {
                let mut shown = sorted(versions);
                if shown.len() > 1 {
                    shown.remove(0);
                }
                shown
            }),
        ),
        ("shows more than its replicas keep", Resolver { resolve: sorted, rule: MergeRule::KeepNewest }),
    ];
    for (what, resolver) in broken {
        assert!(
            !passes(|| conformance::resolver::run(|_| resolver)),
            "a resolver that {what} was not noticed"
        );
    }
}

/// The fault that the membership plugin in this file is given.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Lapse {
    None,
    ForgetsTheSilent,
    SuspectsItself,
    PanicsOnNonsense,
    AddsStrangers,
    AnswersStrangers,
    Floods,
    KeepsOldMetadata,
    CountsItsCalls,
    IsUnsorted,
}

struct Members {
    lapse: Lapse,
    members: Vec<Member>,
    metadata: Vec<(String, Vec<u8>)>,
    this: NodeId,
    silent: bool,
}

static CALLS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

impl Membership for Members {
    fn tick(&mut self, now_ms: u64) -> Vec<OutgoingMessage> {
        self.silent = now_ms > 30_000;
        let to_all = |message: Vec<u8>| {
            self.members
                .iter()
                .map(|member| OutgoingMessage { to: member.id, message: message.clone() })
                .collect::<Vec<_>>()
        };
        match self.lapse {
            Lapse::Floods => (0..100).flat_map(|n: u8| to_all(vec![n])).collect(),
            Lapse::CountsItsCalls => {
                to_all(CALLS.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_le_bytes().to_vec())
            }
            _ => Vec::new(),
        }
    }

    fn receive(&mut self, from: NodeId, message: &[u8], _now_ms: u64) -> Vec<OutgoingMessage> {
        if self.lapse == Lapse::PanicsOnNonsense {
            let _first_eight: [u8; 8] = message[..8].try_into().unwrap();
        }
        if self.lapse == Lapse::AddsStrangers && !self.members.iter().any(|member| member.id == from) {
            self.members.push(Member { id: from, ..Member::new("stranger", "h:0", "") });
        }
        if self.lapse == Lapse::AnswersStrangers {
            return vec![OutgoingMessage { to: from, message: Vec::new() }];
        }
        Vec::new()
    }

    fn view(&self) -> Vec<MemberView> {
        let mut members = self.members.clone();
        if self.lapse != Lapse::IsUnsorted {
            members.sort_by_key(|member| member.id);
        }
        if self.lapse == Lapse::ForgetsTheSilent && self.silent {
            members.retain(|member| member.id == self.this);
        }
        let state = |member: &Member| match self.lapse {
            Lapse::SuspectsItself if member.id == self.this => MemberState::Suspected,
            _ => MemberState::Alive,
        };
        members.into_iter().map(|member| MemberView { state: state(&member), member }).collect()
    }

    fn publish(&mut self, name: &str, value: &[u8]) {
        if self.lapse != Lapse::KeepsOldMetadata {
            self.metadata.retain(|(known, _)| known != name);
        }
        self.metadata.push((name.to_owned(), value.to_vec()));
    }

    fn metadata(&self, of: NodeId) -> Vec<(String, Vec<u8>)> {
        if of == self.this { self.metadata.clone() } else { Vec::new() }
    }

    fn join(&mut self, _: Member) -> Result<(), String> {
        Err("fixed".into())
    }

    fn leave(&mut self, _: NodeId) -> Result<(), String> {
        Err("fixed".into())
    }
}

#[test]
fn every_broken_membership_fails_the_suite() {
    let run = |lapse| {
        passes(|| {
            conformance::membership::run(|members, _| {
                let (members, this) = (members.to_vec(), members[0].id);
                Box::new(Members { lapse, members, metadata: Vec::new(), this, silent: false })
            });
        })
    };
    assert!(run(Lapse::None));
    let lapses = [
        Lapse::ForgetsTheSilent,
        Lapse::SuspectsItself,
        Lapse::PanicsOnNonsense,
        Lapse::AddsStrangers,
        Lapse::AnswersStrangers,
        Lapse::Floods,
        Lapse::KeepsOldMetadata,
        Lapse::CountsItsCalls,
        Lapse::IsUnsorted,
    ];
    for lapse in lapses {
        assert!(!run(lapse), "{lapse:?} was not noticed");
    }
}
