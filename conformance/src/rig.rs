//! What a product test starts with: the registry with the test images, and a node behind it.

use anyhow::{Context, Result};
use bulkhead_proto::runtime::v1 as cri;

use crate::critest::HOSTS;
use crate::images::{Blob, Image, ImageBuilder, PackedLayer, catalog, layout};
use crate::node::{self, Node, Options, pods};
use crate::registry::Registry;
use crate::tar::Layer;

/// A registry and a node.
#[derive(Debug)]
pub struct Rig {
    /// Serves the test images, and what a test adds.
    pub registry: Registry,
    /// The daemon under test.
    pub node: Node,
    stored: Vec<layout::Stored>,
}

/// A running pod and the request it was made by.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its id.
    pub id: String,
    /// Its config.
    pub config: cri::PodSandboxConfig,
}

impl Rig {
    /// With the default options.
    pub async fn start() -> Result<Self> {
        Self::start_with(Options::default()).await
    }

    /// With these options.
    pub async fn start_with(options: Options) -> Result<Self> {
        let folder = layout::ensure(&node::target())?;
        let registry = Registry::start()?;
        registry.add_layout(layout::read(&folder)?);
        let node = Node::start_with(&registry, HOSTS, options).await?;
        Ok(Self {
            registry,
            node,
            stored: layout::read(&folder)?,
        })
    }

    /// The layer of one of the test images: [`catalog::BUSYBOX`] or [`catalog::PROBE`].
    pub fn base(&self, reference: &str) -> Result<PackedLayer> {
        let image = self
            .stored
            .iter()
            .find(|image| image.reference == reference);
        let [_, config, layer, ..] = image.context("not in the layout")?.blobs.as_slice() else {
            anyhow::bail!("{reference} has no layer");
        };
        let config: serde_json::Value = serde_json::from_slice(&config.bytes)?;
        let diff_id = config["rootfs"]["diff_ids"][0]
            .as_str()
            .context("no diff_ids")?;
        Ok(PackedLayer {
            blob: layer.clone(),
            diff_id: diff_id.to_owned(),
        })
    }

    /// busybox with one more layer on top, to be completed.
    pub fn busybox_with(&self, layer: Layer) -> Result<ImageBuilder> {
        ImageBuilder::new()
            .packed(self.base(catalog::BUSYBOX)?)
            .layer(layer)
    }

    /// Serves an image under `name` and pulls it; the reference it has.
    pub async fn publish(&self, name: &str, image: &Image) -> Result<String> {
        self.registry.add(name, image);
        let reference = self.registry.reference(name);
        self.node.pull(&reference).await?;
        Ok(reference)
    }

    /// Pulls busybox; its reference.
    pub async fn busybox(&self) -> Result<&'static str> {
        self.node.pull(catalog::BUSYBOX).await?;
        Ok(catalog::BUSYBOX)
    }

    /// Runs a pod on the node's network.
    pub async fn pod(&self, name: &str) -> Result<Pod> {
        self.run(pods::host_network_pod(&self.node, name)).await
    }

    /// Runs a pod with a network of its own.
    pub async fn networked_pod(&self, name: &str) -> Result<Pod> {
        self.run(pods::pod(&self.node, name)).await
    }

    /// Runs a pod by this config.
    pub async fn run(&self, config: cri::PodSandboxConfig) -> Result<Pod> {
        let id = self.node.run_pod(&config).await?;
        Ok(Pod { id, config })
    }

    /// Creates and starts a container in a pod; its id.
    pub async fn start_in(&self, pod: &Pod, config: &cri::ContainerConfig) -> Result<String> {
        let config = pods::fitting(config, &pod.config);
        Ok(self
            .node
            .launch_container(&pod.id, &pod.config, &config)
            .await?)
    }

    /// Creates a container in a pod; its id.
    pub async fn create_in(
        &self,
        pod: &Pod,
        config: &cri::ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let config = pods::fitting(config, &pod.config);
        self.node.create(&pod.id, &pod.config, &config).await
    }

    /// Runs a container to its end; its exit code and stdout.
    pub async fn run_in(&self, pod: &Pod, config: &cri::ContainerConfig) -> Result<(i32, String)> {
        let config = pods::fitting(config, &pod.config);
        let (status, log) = self.node.run_to_end(&pod.id, &pod.config, &config).await?;
        Ok((status.exit_code, log.stdout()))
    }

    /// The leak check, which closes every test.
    pub async fn finish(self) -> Result<()> {
        self.node.finish().await
    }
}

/// An image index of these images, each with its platform and annotations.
pub fn index(entries: &[(&Blob, serde_json::Value, serde_json::Value)]) -> Blob {
    let manifests: Vec<_> = entries
        .iter()
        .map(|(manifest, platform, annotations)| {
            let mut descriptor = manifest.descriptor();
            descriptor["platform"] = platform.clone();
            if !annotations.is_null() {
                descriptor["annotations"] = annotations.clone();
            }
            descriptor
        })
        .collect();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let body =
        serde_json::json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
    Blob::new(media_type, body.to_string())
}
