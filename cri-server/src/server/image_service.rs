//! ImageService: images by name, pulled and removed.

use bulkhead_proto::runtime::v1::image_service_server::ImageService;
use bulkhead_proto::runtime::v1::{
    ImageFsInfoRequest, ImageFsInfoResponse, ImageStatusRequest, ImageStatusResponse,
    ListImagesRequest, ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest,
    RemoveImageResponse, StreamImagesRequest, StreamImagesResponse,
};
use tokio_stream::Empty;
use tonic::{Request, Response, Status};

use super::unserved::unserved;
use super::{Service, fits, observe};
use crate::failure::{Doing, Failure};
use crate::render::image as render;
use crate::request::image as parse;

#[tonic::async_trait]
impl ImageService for Service {
    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        observe::rpc("ListImages", async {
            let wanted = parse::filter(request.into_inner())?;
            let images = match wanted.as_deref() {
                None => self.node.images.list(),
                Some(name) => self.node.images.find(name)?.into_iter().collect(),
            };
            let images = images.iter().map(|image| render::item(image)).collect();
            fits(
                ListImagesResponse { images },
                self.node.config.limits.message_bytes,
            )
        })
        .await
    }

    type StreamImagesStream = Empty<Result<StreamImagesResponse, Status>>;

    async fn stream_images(
        &self,
        _request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        Err(unserved("StreamImages"))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        observe::rpc("ImageStatus", async {
            let request = request.into_inner();
            let name = parse::name(request.image)?;
            let Some(image) = self.node.images.find(&name)? else {
                return Ok(ImageStatusResponse::default());
            };
            let mut response = ImageStatusResponse {
                image: Some(render::item(&image)),
                ..Default::default()
            };
            if request.verbose {
                response
                    .info
                    .insert("info".to_owned(), render::info(&image)?);
            }
            Ok(response)
        })
        .await
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        observe::rpc("PullImage", async {
            let request = parse::pull(request.into_inner(), &self.node.config.handlers)?;
            // Dropped with the handler when the client cancels: that ends the work.
            let image = self.node.images.pull(request).await?;
            Ok(PullImageResponse {
                image_ref: image.id.to_string(),
            })
        })
        .await
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        observe::rpc("RemoveImage", async {
            let name = parse::name(request.into_inner().image)?;
            let images = self.node.images.clone();
            let removal = async move { images.remove(&name).await };
            self.node
                .tasks
                .spawn("remove image", removal)
                .await
                .doing("remove the image")??;
            Ok(RemoveImageResponse {})
        })
        .await
    }

    async fn image_fs_info(
        &self,
        _request: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        observe::rpc("ImageFsInfo", async {
            let usage = render::usage(&self.node.images.fs_info());
            Ok::<_, Failure>(ImageFsInfoResponse {
                image_filesystems: vec![usage],
                container_filesystems: Vec::new(),
            })
        })
        .await
    }
}
