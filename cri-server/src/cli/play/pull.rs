//! The pod's images, with a progress bar per layer while the daemon fetches them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bulkhead_proto::runtime::v1;
use futures_util::future::try_join_all;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::plan::{Plan, PullPolicy};
use crate::cli::client::{Asking as _, Client};
use crate::cli::terminal::safe;
use crate::image::{PullProgress, Reference};

/// How often the bars move.
const PERIOD: Duration = Duration::from_millis(150);

/// Images by the name the manifest gives them.
pub(super) type Images = BTreeMap<String, v1::Image>;

/// Makes sure that all images are there.
pub(super) async fn all(client: &Client, plan: &Plan) -> anyhow::Result<Images> {
    let mut wanted: BTreeMap<&str, PullPolicy> = BTreeMap::new();
    for container in &plan.containers {
        let policy = wanted.entry(&container.image).or_insert(container.pull);
        // Of several, the one that asks most.
        if rank(container.pull) > rank(*policy) {
            *policy = container.pull;
        }
    }
    // As the daemon spells them in what it says about its pulls.
    let references: BTreeSet<String> = wanted
        .keys()
        .filter_map(|name| Some(Reference::parse(name).ok()?.to_string()))
        .collect();
    let bars = MultiProgress::new();
    let pulls = wanted
        .into_iter()
        .map(|(image, policy)| one(client.clone(), image, policy, &bars));
    let images = tokio::select! {
        images = try_join_all(pulls) => images,
        never = watch(client.clone(), &references, &bars) => match never {},
    };
    bars.clear().context("clear the progress bars")?;
    Ok(images?.into_iter().collect())
}

fn rank(policy: PullPolicy) -> u8 {
    match policy {
        PullPolicy::Never => 0,
        PullPolicy::IfNotPresent => 1,
        PullPolicy::Always => 2,
    }
}

async fn one(
    mut client: Client,
    name: &str,
    policy: PullPolicy,
    bars: &MultiProgress,
) -> anyhow::Result<(String, v1::Image)> {
    let present = status(&mut client, name).await?;
    let image = match (present, policy) {
        (Some(image), PullPolicy::IfNotPresent | PullPolicy::Never) => image,
        (None, PullPolicy::Never) => {
            bail!("image {name} is not here, and its imagePullPolicy is Never")
        }
        _ => pull(&mut client, name, bars).await?,
    };
    Ok((name.to_owned(), image))
}

async fn pull(client: &mut Client, name: &str, bars: &MultiProgress) -> anyhow::Result<v1::Image> {
    let bar = bars.add(ProgressBar::new_spinner());
    bar.set_style(style("{spinner} {msg} {elapsed}"));
    bar.set_message(format!("pulling {}", safe(name)));
    bar.enable_steady_tick(PERIOD);
    let request = v1::PullImageRequest {
        image: Some(spec(name)),
        ..Default::default()
    };
    let answer = client.images.pull_image(request).await;
    bar.finish_and_clear();
    bars.remove(&bar);
    let id = answer.asking(|| format!("pull {name}"))?.image_ref;
    let image = status(client, &id).await?;
    image.with_context(|| format!("image {name} was pulled and is gone again"))
}

fn spec(name: &str) -> v1::ImageSpec {
    v1::ImageSpec {
        image: name.to_owned(),
        ..Default::default()
    }
}

async fn status(client: &mut Client, name: &str) -> anyhow::Result<Option<v1::Image>> {
    let request = v1::ImageStatusRequest {
        image: Some(spec(name)),
        verbose: false,
    };
    let answer = client.images.image_status(request).await;
    Ok(answer.asking(|| format!("ask for image {name}"))?.image)
}

/// Shows the layers of the pod's images while they are pulled, by whomever. Ends only by being
/// dropped.
async fn watch(
    mut client: Client,
    references: &BTreeSet<String>,
    bars: &MultiProgress,
) -> std::convert::Infallible {
    let mut layers: BTreeMap<String, ProgressBar> = BTreeMap::new();
    let mut ticks = tokio::time::interval(PERIOD);
    loop {
        ticks.tick().await;
        // Progress is a courtesy: a daemon that says nothing about it costs only the bars.
        let request = v1::StatusRequest { verbose: true };
        let Ok(answer) = client.runtime.status(request).await else {
            continue;
        };
        let text = answer.into_inner().info.remove("pulls").unwrap_or_default();
        let pulls: Vec<PullProgress> = serde_json::from_str(&text).unwrap_or_default();
        let ours = pulls
            .into_iter()
            .filter(|pull| references.contains(&pull.reference));
        for layer in ours.flat_map(|pull| pull.layers) {
            let bar = layers.entry(layer.digest).or_insert_with_key(|digest| {
                let bar = bars.add(ProgressBar::new(layer.total));
                bar.set_style(style("  {prefix} {bar:32} {bytes:>10} / {total_bytes}"));
                let hex = digest.rsplit(':').next().unwrap_or_default();
                bar.set_prefix(safe(&hex.chars().take(12).collect::<String>()));
                bar
            });
            bar.set_length(layer.total);
            bar.set_position(layer.done);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
